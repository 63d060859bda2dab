"""What a run will do, without training: the program that training would run is
compiled, for hardware that need not be here, and said to fit and be fast or not.

    python -m launch.plan CONFIG.flags [--NAME=VALUE ...] --target=h100:8

Takes every flag of launch.train, and these. Exit codes: 0 done, with warnings or
without; 2 bad input.
"""

import json

from distmlp import InputError
from launch import flags, help, verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("plan", __doc__)
    arguments.add_argument("--target", default="", metavar="CARD:N",
                           help="hardware that need not be here (pip install 'distmlp[targets]'): a100, h100, h200 or "
                           "b200 and a number of GPUs; v4, v5e, v5p or v6e and a shape, as in v5e:2x4. Default: the "
                           "devices that are here")
    arguments.add_argument("--figure", action="append", default=[], metavar="NAME=NUMBER",
                           help="another figure of the card than the table's, as in --figure=link=4e11")
    arguments.add_argument("--members", type=int, metavar="N",
                           help="plan so many members of a sweep like this run, instead of the run")
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    given, rest = arguments.parse_known_args(argv)
    if not rest:
        raise InputError("nothing to plan: give the run's flags, as in `python -m launch.plan configs/8gpu.flags`")
    help.check(rest)
    config = flags.parse(["plan", *rest])
    figures = dict(map(_figure, given.figure))

    from distmlp.plan import plan, text

    result = plan.make(config, given.target, figures, given.members)
    words = text.text if given.members is None else text.members_text
    print(json.dumps(result) if given.json else words(result))
    return 0


def _figure(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InputError(f"--figure={text}: give NAME=NUMBER, as in --figure=link=4e11") from None


if __name__ == "__main__":
    verb.run(main)
