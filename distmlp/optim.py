"""The tutorial's plain SGD by default; momentum, Adam, schedules, weight decay and clipping through optax."""

from typing import Any, NamedTuple

import jax
import optax

from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.kept import kept


class Rates(NamedTuple):
    """Settings of an optimizer that a program can be given as numbers, so that it serves for others, too."""

    learning_rate: Any  # float32 []
    momentum: Any
    weight_decay: Any


def make(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `total_steps` steps: the same object for the same settings."""
    rate = learning_rate(config, config.schedule_steps or total_steps)
    return _kept_chain(config.optimizer, rate, config.momentum or None, config.weight_decay or None, config.clip_norm)


def rates(config: Config) -> Rates:
    return Rates(config.learning_rate, config.momentum, config.weight_decay)


def make_for_many(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The same, whose `update` is given the `rates` of the run: one object for all that differ in nothing else but in
    whether there are a momentum and a decay at all."""
    steps = 0 if config.schedule == "constant" else config.schedule_steps or total_steps
    learning_rate(config, steps)  # or an InputError
    return _of_rates(config.optimizer, config.momentum > 0, config.weight_decay > 0, config.clip_norm,
                     config.warmup_steps, steps)  # fmt: skip


@kept
def _of_rates(
    optimizer: str, has_momentum: bool, decays: bool, clip_norm: float, warmup_steps: int, steps: int
) -> optax.GradientTransformation:
    def chain(rates: Rates) -> optax.GradientTransformation:
        peak = rates.learning_rate
        rate = _warmup_cosine(peak, warmup_steps, steps) if steps else peak
        return _chain(optimizer, rate, rates.momentum if has_momentum else None,
                      rates.weight_decay if decays else None, clip_norm)  # fmt: skip

    def update(grads: Any, state: Any, params: Any, *, rates: Rates, **options: Any) -> Any:
        return chain(rates).update(grads, state, params, **options)

    return optax.GradientTransformationExtraArgs(chain(Rates(1.0, 0.5, 0.5)).init, update)


def _warmup_cosine(peak: Any, warmup_steps: int, steps: int) -> optax.Schedule:
    """optax.warmup_cosine_decay_schedule, as `learning_rate` has it, of a peak that may be traced."""
    start = 0.0 if warmup_steps else peak
    parts = [optax.linear_schedule(start, peak, warmup_steps), optax.cosine_decay_schedule(peak, steps - warmup_steps)]
    return optax.join_schedules(parts, [warmup_steps])


def _chain(
    optimizer: str, rate: Any, momentum: Any, weight_decay: Any, clip_norm: float
) -> optax.GradientTransformation:
    parts = []
    if clip_norm:
        parts.append(_clip(clip_norm))
    if optimizer == "adamw":
        parts.append(optax.adamw(rate, weight_decay=0.0 if weight_decay is None else weight_decay))
    else:
        if weight_decay is not None:
            parts.append(optax.add_decayed_weights(weight_decay))
        parts.append(optax.adam(rate) if optimizer == "adam" else optax.sgd(rate, momentum))
    chain = optax.chain(*parts)

    def update(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its int32 counts
            return chain.update(*arguments, **options)

    return optax.GradientTransformation(chain.init, update)


_kept_chain, _kept_schedule = kept(_chain), kept(optax.warmup_cosine_decay_schedule)  # of numbers, not traced


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """optax.clip_by_global_norm, which can be given the norm: where the gradient is in parts, none of them tells it."""

    def update(grads: Any, state: Any, params: Any = None, *, norm: Any = None, **_: Any) -> Any:
        norm = optax.tree.norm(grads) if norm is None else norm
        return jax.tree.map(lambda g: jax.lax.select(norm < limit, g, g / norm * limit), grads), state

    return optax.GradientTransformationExtraArgs(optax.clip_by_global_norm(limit).init, update)


def learning_rate(config: Config, steps: int) -> optax.ScalarOrSchedule:
    """The learning rate, or the function that gives it for a step, under a schedule of `steps` steps."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.warmup_steps >= steps:
        raise InputError(f"--warmup_steps={config.warmup_steps} must be below the schedule's {steps} steps")
    start = 0.0 if config.warmup_steps else config.learning_rate
    return _kept_schedule(start, config.learning_rate, config.warmup_steps, steps)
