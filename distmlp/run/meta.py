"""What lies beside a checkpoint's arrays, and what is made of it where another version of distmlp has saved it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from distmlp import machine
from distmlp.config import Config, differences
from distmlp.data.datasets import Data
from distmlp.data.order import Order
from distmlp.errors import InputError, listed
from distmlp.parallel import backend
from distmlp.progress import Standing, Totals
from distmlp.run.log import versions

Meta = dict[str, Any]  # JSON values by their names; store.py adds `step` and `digests`

_NEEDED = ("settings", "num_shards", "data", "totals", "versions")
_RENAMED = {"examples": "weight"}  # a sum of version 0.2.0, where each example weighed 1
_LATER = ("data_modified", "data_info", "order", "standing", "lines", "state", "audited")  # versions before may lack


def meta_of(settings: dict[str, Any], order: Order, state: str, data: Meta, reached: Meta) -> Meta:
    """What a checkpoint says beside its arrays.

    Args:
      settings: all of the config.
      order: of the training set.
      state: how it lay.
      data: what is said of the data, by `of_data`.
      reached: and of how far training is, by `of_reached`.
    """
    return {
        "state": state, "settings": settings, "num_shards": order.num_shards, "order": order.drawn, **data, **reached,
        "versions": origin(),
    }


def of_data(data: Data, fingerprint: str) -> Meta:
    return {"data": fingerprint, "data_modified": data.modified(), "data_info": data.info()}


def of_reached(sums: Totals, standing: Standing, counts: dict[str, int]) -> Meta:
    """`counts`: of the lines in the run's files."""
    return {"totals": dataclasses.asdict(sums), "standing": standing._asdict(), "lines": counts}


def origin() -> dict[str, str]:
    """What the bits of an invariant run depend on besides its settings."""
    device = jax.devices()[0]
    processor = machine.processor() if device.platform == "cpu" else device.device_kind
    return {**versions(), "processor": processor, "PJRT_NPROC": str(backend.cpu_threads() or "not known")}


def check_form(meta: Meta, arrays: Iterable[str], versions: dict[str, str], workdir: str) -> None:
    """Raises InputError where an intact checkpoint is not of the form that this version trains.

    Args:
      arrays: the names of the state's arrays here.
      versions: of the packages here.
      workdir: how a message calls the run's folder.
    """
    wanted = set(arrays)
    lacks = [name for name in _NEEDED if name not in meta] + sorted(wanted - meta["digests"].keys())
    more = sorted(meta["digests"].keys() - wanted)
    if lacks or more:
        found = [f"lacks {listed(lacks, 3)}"] * bool(lacks) + [f"has {listed(more, 3)}"] * bool(more)
        saved = {name: version for name, version in meta.get("versions", {}).items() if name in versions}
        changed = differences(saved, {name: versions[name] for name in saved})
        raise InputError(f"the state in {workdir} is of another form than the one trained here: at step {meta['step']} "
                         f"it {' and '.join(found)} ({'; '.join(changed) or 'no package has another version'}): "
                         "install the versions that it was saved by, or give another --workdir")


def unknown(meta: Meta) -> str:
    """What this version does not know, for a remark; empty if it knows all."""
    settings, totals = Config().settings(), {field.name for field in dataclasses.fields(Totals)}
    names = [
        *(f"--{name}" for name in meta.get("settings", {}) if name not in settings),
        *(name for name in meta.get("totals", {}) if _RENAMED.get(name, name) not in totals),
        *(name for name in meta if name not in (*_NEEDED, *_LATER, "step", "digests")),
    ]
    if not names:
        return ""
    saved = meta.get("versions", {}).get("distmlp", "of another version")
    return (f"checkpoint {meta['step']} was saved by distmlp {saved}; this version does not know, and leaves out: "
            f"{listed(names)}")


def totals(meta: Meta) -> Totals:
    """The sums in a checkpoint; those that it lacks begin anew."""
    known = {field.name for field in dataclasses.fields(Totals)}
    saved = {_RENAMED.get(name, name): value for name, value in meta["totals"].items()}
    return Totals(**{name: value for name, value in saved.items() if name in known})


def standing(meta: Meta) -> Standing:
    """How the evaluations stood; nothing of versions that do not say so: the lines of metrics.jsonl do."""
    saved = meta.get("standing", {})
    return Standing(**{name: saved[name] for name in Standing._fields if name in saved})
