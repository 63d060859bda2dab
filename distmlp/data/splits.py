"""Parts of a set that are held out: drawn by a seed, with each class in proportion."""

from collections.abc import Sequence

import numpy as np

from distmlp.data.examples import Examples
from distmlp.errors import InputError, one_line


def hold_out(
    whole: Examples, part: str, fraction: float, seed: int, names: Sequence[str] | None
) -> tuple[Examples, Examples]:
    """What stays of a set, and the part of this name that is held out of it; both in the order of the set.

    The classes, of these names, are in proportion in both. Where all labels are alike, because they are not known, the
    part is drawn without regard to them.

    Raises:
      InputError: a class has a single example, or a part would be empty.
    """
    from sklearn.model_selection import train_test_split

    flag, labels = f"--{part}_fraction={fraction}", whole.labels
    single = np.flatnonzero(np.bincount(labels) == 1)
    if len(single):
        raise InputError(f"{flag}: class {names[single[0]] if names else single[0]} of {whole.name} "
                         "has a single example, and each part needs one: remove it, or give the parts as files")
    try:
        stay, held = train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed)
    except ValueError as error:
        raise InputError(f"{flag} does not divide the {len(labels)} examples of {whole.name} "
                         f"({one_line(error)}): give another fraction") from None
    return whole.part(np.sort(stay), whole.name), whole.part(np.sort(held), f"{whole.name} ({part} part)")
