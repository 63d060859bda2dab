"""The data sets of a run: read again as its settings say, and known to be the same; and others for its model."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmlp.config import FROM_PYTHON, NAMED_DATASETS
from distmlp.data import datasets, sources
from distmlp.data.examples import Readable
from distmlp.data.labels import Classes
from distmlp.data.streams import Streamed
from distmlp.data.tables import Tables
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
        config = dataclasses.replace(model.reading, dataset=dataset, num_classes=len(model.classes))
    elif config.dataset.startswith(FROM_PYTHON):
        raise InputError(f"{model.run} was trained on data given from Python: name some with --dataset, "
                         "or call load(RUN).evaluate(x, y)")
    picture = functools.partial(pictures.for_model, model.num_features, model.data_info, model.reading)
    data = datasets.load(config, learned=datasets.Learned(model.data_info, picture) if dataset else None)
    if not dataset and data.fingerprint() != model.meta["data"]:
        raise InputError(f"the data of --dataset={config.dataset} are not those that {model.run} was trained on: "
                         "bring them back, or name the data to use with --dataset")
    for text in data.remarks:
        remark(text)
    if data.num_features != model.num_features:
        raise InputError(f"--dataset={dataset} has {data.num_features} features, but {model.run} was trained on "
                         f"{model.num_features}")
    return data


def split(model: Model, name: str = "test", dataset: str = "") -> Readable:
    """One of its sets: train, test or validation; raises InputError as `read`, or if there is no such set. Tables of
    another `dataset` are read as they are needed, from the first row to the last.
    """
    if name not in SPLITS:
        raise InputError(f"--split={name}: choose one of {', '.join(SPLITS)}")
    path = Path(dataset)
    if dataset and dataset not in NAMED_DATASETS and model.columns and path.exists() and sources.tables(path):
        config = dataclasses.replace(model.reading, dataset=dataset)
        streams: Any = sources.for_model(path, config, model.columns)
        found = dict.fromkeys(("train", "test"), streams.get("train") or streams.get("test")) | streams
    else:
        found = vars(read(model, dataset))
    if found.get(name) is None:
        raise InputError(f"--split=validation: {model.run} has no validation set; choose train or test")
    if not isinstance(found[name], Tables):
        return found[name]
    stream = found[name]
    return Streamed(stream, Classes.of(model.data_info, len(model.classes)),
                    ended=lambda: [*map(remark, stream.remarks)])


def sets(model: Model | Ensemble, name: str = "test", dataset: str = "") -> list[Readable]:
    """What `evaluate_sets` is to be given: one of the sets, of an ensemble whose members take other features as each
    one does. Raises InputError as `split`, or if the members do not share the set."""
    if isinstance(model, Model):
        return [split(model, name, dataset)]
    first, members = split(model.members[0], name, dataset), model.members
    prints = {str(member.meta["data"]).split()[SPLITS.index(name)] for member in members}
    drawn = {(member.config.dataset, member.config.test_fraction, member.config.drawing_seed) for member in members}
    if not dataset and len(prints) > 1 and (model.alike or name != "test" or len(drawn) > 1):
        raise InputError(f"--split={name}: the members of {model.run} have other {name} sets than one another: "
                         f"{'give test, or name' if name != 'test' else 'name'} data to use with --dataset")
    return [first] if model.alike else [first, *(split(member, name, dataset) for member in members[1:])]


def evaluate_sets(
    model: Model | Ensemble, sets: list[Readable], watch: "Watch | None" = None, together: bool = False
) -> "ClassificationReport":
    """The results on what `sets` gives; `together` is for a single model, of an ensemble each process computes all."""
    if isinstance(model, Ensemble):
        return model.evaluate_sets(sets, watch)
    return model.evaluate_set(sets[0], watch, together)


def evaluate(model: Model | Ensemble, name: str = "test", dataset: str = "") -> "ClassificationReport":
    """The results on one of its sets; raises InputError as `sets`."""
    return evaluate_sets(model, sets(model, name, dataset))
