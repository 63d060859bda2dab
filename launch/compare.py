"""Compares two runs: the first step at which their examples, losses or parameters part.

    python -m launch.compare RUN_A RUN_B

Runs trained with --ledger are compared step by step; all are by the metrics and checkpoints that both have. Exit codes:
0 the same as far as both go, 1 they part, 2 bad input.
"""

from pathlib import Path

from launch import verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("compare", __doc__)
    arguments.add_argument("run_a", action=verb.Named, metavar="RUN_A", help="a run's folder, its --workdir")
    arguments.add_argument("run_b", action=verb.Named, metavar="RUN_B", help="another's")
    given = arguments.parse_args(argv)

    from distmlp.results.compare import compare

    found = compare(Path(given.run_a), Path(given.run_b))
    print("\n".join(found.lines))
    return int(found.parted_at is not None)


if __name__ == "__main__":
    verb.run(main)
