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
                           help="copy them there; existing files are kept")
    given = arguments.parse_args(argv)

    files = {path.name: path for path in sorted(CONFIGS.iterdir()) if path.is_file()}
    if unknown := [name for name in given.names if name not in files]:
        raise InputError(f"{unknown[0]} is no config: choose from {', '.join(files)}")
    for name in given.names or files:
        if given.copy:
            _copy(files[name], Path(given.copy) / name)
        else:
            print(f"{name:<25} {_about(files[name])}")
    return 0


def _about(path: Path) -> str:
    """The first comment that is a sentence."""
    comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    said = next((text for text in comments if text[:1].isupper() and "=" not in text.split()[0]), "")
    return textwrap.shorten(said, 54, placeholder=" ...")


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        raise InputError(f"{target} exists already: remove it, or give another --copy")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}): give another --copy") from None
    print(target)


if __name__ == "__main__":
    verb.run(main)
