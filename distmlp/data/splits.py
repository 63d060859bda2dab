"""Parts of a set that are held out: index arrays, seeded, with each class in proportion."""

from collections.abc import Sequence

import numpy as np

from distmlp.config import Config
from distmlp.errors import InputError, one_line


def hold_out(
    labels: np.ndarray, fraction_flag: str, config: Config, name: str, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the examples that stay and of those held out, int64, ascending.

    Args:
      labels: int32 [N], by whose classes the parts are in proportion; all alike: drawn without regard to them.
      fraction_flag: says how large the held-out part is.

    Raises:
      InputError: a class has a single example, or a part would be empty.
    """
    from sklearn.model_selection import train_test_split

    fraction = getattr(config, fraction_flag)
    single = np.flatnonzero(np.bincount(labels) == 1)
    if len(single):
        raise InputError(f"--{fraction_flag}={fraction}: class {names[single[0]] if names else single[0]} of {name} "
                         "has a single example, and each part needs one: remove it, or give the parts as files")
    try:
        stay, held = train_test_split(
            np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=config.seed
        )
    except ValueError as error:
        raise InputError(f"--{fraction_flag}={fraction} does not divide the {len(labels)} examples of {name} "
                         f"({one_line(error)}): give another fraction") from None
    return np.sort(stay), np.sort(held)
