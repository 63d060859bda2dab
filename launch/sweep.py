"""Trains many networks at once: settings, seeds and folds, and chooses the best settings.

    python -m launch.sweep CONFIG.flags [--NAME=VALUE ...] --folds=5 --vary learning_rate 0.001 0.01 --workdir=FOLDER

Takes the flags of launch.train, for all members, but those that save or check a single run, as --ledger; and these.
--vary NAME VALUE VALUE may be given several times: every combination is a setting. With --sample=N, so many are drawn,
also from ranges: --vary learning_rate log:1e-4:1e-1, or uniform:0.1:0.9. Members are scored on the part of the training
set that their fold holds out, or on the validation set. The same command goes on where it was stopped. Exit codes: as
launch.train's.
"""


from launch import flags, help, verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    from distmlp.many import vary

    arguments = verb.parser("sweep", __doc__)
    arguments.add_argument("--folds", type=int, default=0, metavar="K",
                           help="hold out each of K parts of the training set in turn, each class in proportion")
    arguments.add_argument("--sample", type=int, default=0, metavar="N", help="draw N settings, by --seed")
    arguments.add_argument("--halving", type=int, default=0, metavar="R",
                           help="after 1/R^2 and 1/R of the steps, only the best 1/R of the settings go on")
    arguments.add_argument("--keep", type=int, default=8, metavar="N",
                           help="keep the N best members, as runs in FOLDER/members; 0: none")
    arguments.add_argument("--norefit", action="store_true",
                           help="do not train the best settings again on all training data, nor read the test set")
    arguments.add_argument("--vary", action="append", default=[], nargs="+", metavar=("NAME", "VALUE"),
                           help="a setting, and the values that it has in turn")
    varied, rest = vary.from_flags(argv)
    given, rest = arguments.parse_known_args(rest)
    help.check(rest)
    config = flags.parse(["sweep", *(rest or ["--dataset=digits"])])

    from distmlp import sweep

    sweep(config, varied, folds=given.folds, sample=given.sample, halving=given.halving, keep=given.keep,
          refit=not given.norefit)  # fmt: skip
    return 0


if __name__ == "__main__":
    verb.run(main, kept="the same command, with its --workdir, goes on: finished members stay")
