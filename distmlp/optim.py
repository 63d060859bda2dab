"""The tutorial's plain SGD by default; momentum, Adam, schedules, weight decay and clipping through optax."""

from typing import Any

import jax
import optax

from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.kept import kept


def make(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `total_steps` steps: the same object for the same settings."""
    rate = learning_rate(config, config.schedule_steps or total_steps)
    return kept(_chain, config.optimizer, rate, config.momentum, config.weight_decay, config.clip_norm)


def _chain(
    optimizer: str, rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    parts = []
    if clip_norm:
        parts.append(_clip(clip_norm))
    if optimizer == "adamw":
        parts.append(optax.adamw(rate, weight_decay=weight_decay))
    else:
        if weight_decay:
            parts.append(optax.add_decayed_weights(weight_decay))
        parts.append(optax.adam(rate) if optimizer == "adam" else optax.sgd(rate, momentum or None))
    chain = optax.chain(*parts)

    def update(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its int32 counts
            return chain.update(*arguments, **options)

    return optax.GradientTransformation(chain.init, update)


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
    return kept(optax.warmup_cosine_decay_schedule, start, config.learning_rate, config.warmup_steps, steps)
