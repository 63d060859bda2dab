"""Trains the MLP: python -m launch.train --flagfile=configs/digits.flags

Exit codes: 0 done, or help; 2 bad input; 3 diverged; 130 and 143 interrupted by SIGINT and SIGTERM; else a fault.
"""

from distmlp import signals

signals.install_exit_at_once()  # before the slow imports

import sys  # noqa: E402
import traceback  # noqa: E402

from distmlp import InputError, flags  # noqa: E402


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    try:
        config = flags.parse(argv)
        config.validate()
    except flags.HelpRequested as help_text:
        print(f"{__doc__}\nFlags:\n{help_text}")
        return 0
    except InputError as error:
        return _fail(error, 2)

    from distmlp.checkpoint import CheckpointError
    from distmlp.digest import DivergedError
    from distmlp.loop import train

    try:
        train(config)
    except InputError as error:
        return _fail(error, 2)
    except DivergedError as error:
        return _fail(error, 3)
    except CheckpointError as error:
        return _fail(error, 1)
    except signals.Interrupted as stop:
        print(f"distmlp: {stop}", file=sys.stderr)
        return stop.exit_code
    except Exception as error:
        return _fault(error)
    return 0


def _fault(error: Exception) -> int:
    """Reports what should not happen; with several processes, most often that another one has died."""
    from distmlp import cluster

    traceback.print_exc()
    if cluster.several():
        _fail(RuntimeError(f"{cluster.this_process()} stops: {' '.join(str(error).split())[:300]}"), 1)
    return 1


def _fail(error: Exception, code: int) -> int:
    print(f"distmlp: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    code = main(sys.argv)
    if code and "jax" in sys.modules:
        from distmlp import cluster

        cluster.leave(code)
    sys.exit(code)
