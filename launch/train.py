"""Trains the MLP: python -m launch.train --flagfile=configs/digits.flags

Exit codes: 0 done, or help; 2 bad input; 3 diverged; 128 + its number when stopped by a signal (130 by Ctrl-C, 143 by
SIGTERM); else a fault.
"""

from launch import command, flags, help


def main(argv: list[str]) -> None:
    """Runs the command line."""
    help.check(argv)
    config = flags.parse(argv)
    config.validate()
    from distmlp import loop  # slow
    from distmlp.data import datasets

    loop.run(config, datasets.load, began=command.BEGAN)


if __name__ == "__main__":
    command.run(main)
