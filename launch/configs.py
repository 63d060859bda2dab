"""Lists the configs that come with distmlp, or copies some to start from.

    python -m launch.configs [NAME ...] [--copy=FOLDER]

Training finds them by name: python -m launch.train digits.flags. Without a NAME, all are listed or copied.
"""

import shutil
import textwrap
from pathlib import Path

from distmlp import InputError
from launch import verb
from launch.flags import CONFIGS


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("configs", __doc__)
    arguments.add_argument("names", metavar="NAME", nargs="*", help="a config, as digits.flags or kubernetes.yaml")
    arguments.add_argument("--copy", action=verb.Named, default="", metavar="FOLDER",
                           help="copy them there; where one exists already, none is copied")
    given = arguments.parse_args(argv)

    files = {path.name: path for path in sorted(CONFIGS.iterdir()) if path.is_file()}
    if unknown := [name for name in given.names if name not in files]:
        raise InputError(f"{unknown[0]} is no config: choose from {', '.join(files)}")
    targets = {name: Path(given.copy) / name for name in given.names or files}
    if given.copy:
        if there := next((target for target in targets.values() if target.exists()), None):
            raise InputError(f"{there} exists already: remove it, or give another --copy")
        for name, target in targets.items():
            _copy(files[name], target)
        return 0
    for name in targets:
        print(f"{name:<25} {_about(files[name])}")
    return 0


def _about(path: Path) -> str:
    """The first comment that is a sentence."""
    comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    said = next((text for text in comments if text[:1].isupper() and "=" not in text.split()[0]), "")
    return textwrap.shorten(said, 54, placeholder=" ...")


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}): give another --copy") from None
    print(target)


if __name__ == "__main__":
    verb.run(main)
