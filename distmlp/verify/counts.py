"""Whether each example counts exactly once, as the devices themselves see it."""

from contextlib import closing

import numpy as np

from distmlp import training
from distmlp.config import FROM_PYTHON
from distmlp.data import datasets
from distmlp.parallel import backend
from distmlp.parallel.evaluate import Seen
from distmlp.progress import Progress
from distmlp.verify.arithmetic import parameters
from distmlp.verify.here import CLASSES, FEATURES, TEST, Here, NotHeld

_EXAMPLES, _BATCH = 257, 100  # an uneven last batch
_NEAR = 1e-4  # log-probabilities nearer than that may change places


def training_examples(here: Here) -> str:
    """Each example of an epoch is the only one that has its feature: how that feature's weights move tells how often
    the example was there. Expected is what a linear classifier does by NumPy, in float64."""
    images, labels = np.eye(_EXAMPLES, dtype=np.uint8), np.arange(_EXAMPLES) % CLASSES
    for placement in ("device", "host"):
        config = here.config(
            dataset=f"{FROM_PYTHON}one of each", hidden_sizes=(), batch_size=_BATCH, max_steps=0, num_epochs=1,
            learning_rate=1.0, momentum=0.0, input_scaling="none", shuffle=False, reduction="fast", num_shards=0,
            data_placement=placement, matmul_precision="highest",
        )  # fmt: skip
        data = datasets.load(config, (images, labels), (images[:CLASSES], labels[:CLASSES]))
        with backend.pinned(config), closing(here.program(config, data)) as parts:
            parts.compile()
            state = parts.initial_state(())
            weights_before, biases_before = parts.held.arrays(state.params)
            state, *_ = training.carry(parts, state, Progress(parts.cadence), lambda line: None)
            weights, _ = parts.held.arrays(state.params)
        expected = _epoch(weights_before, biases_before, labels) - weights_before
        # How often each example's feature moved its weights: 1 is once.
        times = ((weights - weights_before) * expected).sum(axis=0) / (expected**2).sum(axis=0)
        wrong = np.flatnonzero(~(np.abs(times - 1) < 0.01))
        if len(wrong):
            raise NotHeld(f"data on the {placement}: {len(wrong)} of {_EXAMPLES} examples did not count once: number "
                          f"{wrong[0]} {times[wrong[0]]:.2f} times")
    return f"{_EXAMPLES} of {_EXAMPLES} examples in batches of {_BATCH}, data on the device and from the host"


def _epoch(weights: np.ndarray, biases: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights [classes, examples] after an epoch with learning rate 1, where example i is feature i."""
    weights, biases = weights.astype(np.float64), biases.astype(np.float64)
    for start in range(0, len(labels), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(labels)))
        logits = weights[:, rows] + biases[:, None]
        odds = np.exp(logits - logits.max(axis=0))
        errors = (odds / odds.sum(axis=0) - np.eye(CLASSES)[:, labels[rows]]) / (len(rows) * CLASSES)
        weights[:, rows] -= errors
        biases -= errors.sum(axis=1)
    return weights


def test_examples(here: Here) -> str:
    """An evaluation gives each example, in its place, the class that NumPy gives it in float64."""
    config = here.config(eval_batch_size=16, input_scaling="none", matmul_precision="highest")
    data, params = here.load(config), parameters((FEATURES, *config.hidden_sizes, CLASSES))
    params[0] = (params[0][0] / 255, params[0][1])
    seen = list[Seen]()
    with backend.pinned(config), closing(here.program(config, data)) as parts:
        found = parts.evaluator(parts.state_of(params, ()), data.test, watch=seen.append)
    told = np.concatenate([some.labels for some in seen])
    classes = np.concatenate([some.predicted for some in seen])
    images, labels = data.test.take(np.arange(TEST))
    outputs = images.astype(np.float64)
    for at, (w, b) in enumerate(params):
        outputs = (np.maximum(outputs, 0) if at else outputs) @ w.T.astype(np.float64) + b
    *_, second, first = np.sort(outputs, axis=1).T
    sure = first - second > _NEAR
    predicted = outputs.argmax(axis=1)
    wrong = np.flatnonzero(sure & (classes != predicted) | (told != labels))
    if len(wrong) or found.total != TEST or abs(found.correct - (predicted == labels).sum()) > (~sure).sum():
        raise NotHeld(f"{len(wrong)} of {TEST} examples got another class than the host's, or another label; "
                      f"{found.total} were counted")
    return f"{found.total} of {TEST} examples, {config.eval_batch_size} a device and step"
