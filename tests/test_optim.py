"""Optimizers and schedules do the arithmetic that their flags promise."""

from typing import Any

import numpy as np
import optax
import pytest

from distmlp import Config, InputError
from distmlp.optim import make


def run(config: Config, grads: list[float], total_steps: int = 10, start: float = 1.0) -> list[float]:
    """The parameter after each gradient."""
    optimizer = make(config, total_steps)
    params = np.float32(start)
    state, seen = optimizer.init(params), []
    for grad in grads:
        updates, state = optimizer.update(np.float32(grad), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params))
    return seen


def test_plain_sgd_keeps_no_state_of_its_own() -> None:
    assert run(Config(), [2.0, -1.0]) == pytest.approx([0.98, 0.99])


def test_momentum() -> None:
    velocity, expected, x = 0.0, [], 1.0
    for grad in (2.0, -1.0, 0.5):
        velocity = 0.9 * velocity + grad
        x -= 0.1 * velocity
        expected.append(x)
    assert run(Config(learning_rate=0.1, momentum=0.9), [2.0, -1.0, 0.5]) == pytest.approx(expected)


def test_weight_decay_is_added_to_the_gradient_of_sgd() -> None:
    assert run(Config(learning_rate=0.1, weight_decay=0.5), [2.0]) == pytest.approx([1 - 0.1 * (2 + 0.5)])


def test_clipping_comes_before_weight_decay() -> None:
    config = Config(learning_rate=0.1, weight_decay=0.5, clip_norm=1.0)
    assert run(config, [20.0]) == pytest.approx([1 - 0.1 * (1 + 0.5)])
    assert run(config, [0.5]) == pytest.approx([1 - 0.1 * (0.5 + 0.5)])


@pytest.mark.parametrize(("optimizer", "expected"), [("adam", 0.9), ("adamw", 0.9 - 0.1 * 0.5)])
def test_adam_and_decoupled_decay(optimizer: str, expected: float) -> None:
    """Adam's first step is the learning rate; adamw's decay is added to it, adam's would vanish in the quotient."""
    decay = 0.5 if optimizer == "adamw" else 0.0
    config = Config(optimizer=optimizer, learning_rate=0.1, weight_decay=decay)
    assert run(config, [3.0]) == pytest.approx([expected], rel=1e-5)


def rates(total_steps: int, count: int, **changes: Any) -> np.ndarray:
    seen = run(Config(learning_rate=0.4, schedule="warmup_cosine", **changes), [1.0] * count, total_steps, 0.0)
    return -np.diff([0.0, *seen])


def test_warmup_cosine_rises_linearly_and_falls_to_zero() -> None:
    np.testing.assert_allclose(rates(10, 10)[0], 0.4, rtol=1e-5)  # no warm-up: from the peak
    found = rates(12, 12, warmup_steps=4)
    np.testing.assert_allclose(found[:5], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    np.testing.assert_allclose(found[4:], [0.2 * (1 + np.cos(np.pi * k / 8)) for k in range(8)], atol=1e-6)


def test_schedule_steps_replace_the_runs_length() -> None:
    np.testing.assert_array_equal(rates(99, 5, schedule_steps=5), rates(5, 5))
    assert rates(99, 8, schedule_steps=5)[5:] == pytest.approx(np.zeros(3), abs=1e-7)


def test_warmup_must_be_shorter_than_the_schedule() -> None:
    with pytest.raises(InputError, match="--warmup_steps=10 must be below the schedule's 10 steps"):
        make(Config(schedule="warmup_cosine", warmup_steps=10), 10)
