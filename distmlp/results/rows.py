"""Files and folders to predict for: rows of tables and arrays, as training reads them, and pictures."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distmlp.data import read as reader
from distmlp.errors import InputError, remark
from distmlp.results.ensemble import Ensemble
from distmlp.results.models import Model


class Rows(NamedTuple):
    """What one file holds."""

    file: Path
    features: np.ndarray  # uint8 or float32 [N, features], checked for the model
    picture: bool  # whether it is a single picture


def read(path: Path, model: Model | Ensemble, header: str = "") -> Iterator["Rows | InputError"]:
    """What the files at a path hold, or why one of several cannot be read. `header` is said of them (--header).

    Raises:
      InputError: there is nothing at this path that the model can predict.
    """
    config = dataclasses.replace(model.config, header=header) if header else model.config
    for found in reader.rows(path, config, model.columns, model.num_features, sure=bool(header)):
        for text in found.remarks:
            remark(text)
        try:
            if found.features is not None:
                yield Rows(found.path, _checked(found.path, found.features, model), False)
                continue
            from distmlp.results import pictures

            picture = pictures.for_model(model.num_features, model.data_info, model.config, found.path)
            yield Rows(found.path, model.check(picture[None]), True)
        except InputError as error:
            yield error


def _checked(path: Path, features: np.ndarray, model: Model | Ensemble) -> np.ndarray:
    try:
        return model.check(features)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
