"""Trains the MLP: python -m launch.train --flagfile=configs/digits.flags

Exit codes: 0 done, or help; 2 bad input; 3 diverged; 130 and 143 interrupted by SIGINT and SIGTERM; else a fault.
"""

from distmlp.run import signals

signals.install_exit_at_once()  # before the slow imports

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402

from distmlp import InputError, flags  # noqa: E402


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    try:
        config = flags.parse(argv)
        config.validate()
    except flags.HelpRequested as text:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends quietly
        print(text)
        return 0
    except InputError as error:
        return _fail(error, 2)

    from distmlp.cluster import group, launcher
    from distmlp.loop import train
    from distmlp.parallel.digest import DivergedError
    from distmlp.run.workdir import WriteError

    try:
        if launcher.find_place(config) is not None:
            _mute_gloo()
        train(config)
    except InputError as error:
        return _fail(error, 2)
    except DivergedError as error:
        return _fail(error, 3)
    except WriteError as error:
        return _fail(error, 1)
    except signals.Interrupted as stop:
        if group.is_first():
            print(f"distmlp: {stop}", file=sys.stderr)
        return stop.exit_code
    except Exception as error:
        group.fail(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", traceback.format_exc())
        traceback.print_exc()
        return 1
    return 0


def _mute_gloo() -> None:
    """Gloo greets each of its peers on the C library's standard output: from here on, only Python writes there."""
    sys.stdout.flush()
    sys.stdout = open(os.dup(1), "w", buffering=1, closefd=False)  # noqa: SIM115 - it lasts as long as the process
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _fail(error: Exception, code: int) -> int:
    if "distmlp.cluster.group" in sys.modules:
        from distmlp.cluster import group

        group.fail(code, str(error))  # does not return if there are several processes
    print(f"distmlp: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    code = main(sys.argv)
    if code and "distmlp.cluster.group" in sys.modules:
        from distmlp.cluster import group

        group.leave(code)
    sys.exit(code)
