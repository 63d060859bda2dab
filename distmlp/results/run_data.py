"""The data sets of a run: read again as its settings say, and known to be the same."""

import dataclasses
import functools
from typing import TYPE_CHECKING

from distmlp.config import FROM_PYTHON
from distmlp.data import datasets
from distmlp.errors import InputError, remark
from distmlp.results import pictures
from distmlp.results.ensemble import Ensemble
from distmlp.results.models import Model

if TYPE_CHECKING:  # imports scikit-learn, which predictions do not need
    from distmlp.results.evaluation import ClassificationReport, Watch

SPLITS = ("train", "test", "validation")  # as Data.fingerprint has them


def read(model: Model, dataset: str = "") -> datasets.Data:
    """The data of the run, or another `dataset`, named as for --dataset, with the run's classes.

    Raises:
      InputError: they cannot be had, do not fit the model, or are not what the run was trained on.
    """
    config = model.config
    if dataset:
        config = dataclasses.replace(config, dataset=dataset, num_classes=len(model.classes))
    elif config.dataset.startswith(FROM_PYTHON):
        raise InputError(f"{model.run} was trained on data given from Python: name some with --dataset, "
                         "or call load(RUN).evaluate(x, y)")
    picture = functools.partial(pictures.for_model, model.num_features, model.data_info, model.config)
    data = datasets.load(config, info=model.data_info, picture=picture) if dataset else datasets.load(config)
    if not dataset and data.fingerprint() != model.meta["data"]:
        raise InputError(f"the data of --dataset={config.dataset} are not those that {model.run} was trained on: "
                         "bring them back, or name the data to use with --dataset")
    for text in data.remarks:
        remark(text)
    if data.num_features != model.num_features:
        raise InputError(f"--dataset={dataset} has {data.num_features} features, but {model.run} was trained on "
                         f"{model.num_features}")
    return data


def split(model: Model, name: str = "test", dataset: str = "") -> datasets.Examples:
    """One of its sets: train, test or validation; raises InputError as `read`, or if there is no such set."""
    if name not in SPLITS:
        raise InputError(f"--split={name}: choose one of {', '.join(SPLITS)}")
    chosen: datasets.Examples | None = getattr(read(model, dataset), name)
    if chosen is None:
        raise InputError(f"--split=validation: {model.run} has no validation set; choose train or test")
    return chosen


def evaluate(
    model: Model | Ensemble, name: str = "test", dataset: str = "", watch: "Watch | None" = None
) -> "ClassificationReport":
    """The results on one of its sets; raises InputError as `split`, or if an ensemble's members do not share it."""
    if isinstance(model, Ensemble):
        return model.evaluate_sets(_shared(model, name, dataset), watch)
    return model.evaluate_set(split(model, name, dataset), watch)


def _shared(ensemble: Ensemble, name: str, dataset: str) -> list[datasets.Examples]:
    """One of the members' sets: a single one if they take the same features, else as each one takes it."""
    first, members = split(ensemble.members[0], name, dataset), ensemble.members
    prints = {str(member.meta["data"]).split()[SPLITS.index(name)] for member in members}
    drawn = {(member.config.dataset, member.config.test_fraction, member.config.drawing_seed) for member in members}
    if not dataset and len(prints) > 1 and (ensemble.alike or name != "test" or len(drawn) > 1):
        raise InputError(f"--split={name}: the members of {ensemble.run} have other {name} sets than one another: "
                         f"{'give test, or name' if name != 'test' else 'name'} data to use with --dataset")
    return [first] if ensemble.alike else [first, *(split(member, name, dataset) for member in members[1:])]
