"""Evaluates a run: exact loss and accuracy, and precision, recall and F1 of each class.

    python -m launch.evaluate RUN

The numbers are those that training logged at the checkpoint's step, to the last digit (on the same kind of processor),
on any number of devices and processes, as under torchrun or Slurm. Of a sweep's folder, the refitted model is
evaluated; with --ensemble, it is the mean of the members that were kept, and how far these disagree.

--output also writes a file with a row for each example, in the order of the set: its label, the class that was
predicted, and its probability. Memory does not grow with the examples.
"""

import contextlib
import json
from pathlib import Path

from distmlp import InputError
from launch import verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("evaluate", __doc__)
    arguments.add_argument("run", action=verb.Named, metavar="RUN", help="a run's folder, its --workdir")
    verb.add_checkpoint(arguments)
    verb.add_ensemble(arguments)
    arguments.add_argument("--dataset", action=verb.Named, default="",
                           help="other data than the run's, named as for training")
    arguments.add_argument("--split", default="test", help="train, test (the default) or validation")
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_argument("--output", action=verb.Named, default="", metavar="FILE",
                           help="write a .parquet, .csv, .jsonl or .npy file (which holds probabilities alone) with a "
                                "row for each example")
    arguments.add_argument("--probabilities", action="store_true", help="in it, the probability of each class, too")
    given = arguments.parse_args(argv)
    if given.probabilities and not given.output:
        raise InputError("--probabilities goes with --output=FILE")

    from distmlp.cluster.group import Group
    from distmlp.config import Config
    from distmlp.results import bulk, load, run_data

    group = Group.join(Config())
    with group.together(), contextlib.ExitStack() as stack:
        model = load.load(Path(given.run), given.checkpoint, given.ensemble)
        sets = run_data.sets(model, given.split, given.dataset)
        prints = [examples.fingerprint() for examples in sets if group.several]
        group.agree({"the run": str(model.step), "the examples": " ".join(prints)})
        watch = None
        if given.output and group.first:
            output = bulk.Output(Path(given.output), probabilities=given.probabilities)
            watch = stack.enter_context(bulk.of_examples(model, output, given.dataset))
        result = run_data.evaluate_sets(model, sets, watch, together=group.several)
    if group.first:
        print(json.dumps(result.as_json()) if given.json else result)
    return 0


if __name__ == "__main__":
    verb.run(main)
