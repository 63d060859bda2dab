"""Exported networks, read back and run as other programs run them: what folding the scaling loses, and whether a file
says what predict says.

The training set may be gone. The rows that both are asked about are drawn from what the run knows of it: the statistics
of its input scaling, or its largest value.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.results.ensemble import Ensemble
from distmlp.results.extras import need
from distmlp.results.models import Model

LOSS = 1e-5  # of a probability, which folding the scaling into the first layer may cost
_ROWS = 64
_SPREADS = np.array([1, 0.3, 0.1, 0], np.float32)  # of rows, in turn: near the mean the network is least sure of itself

Layers = Sequence[tuple[np.ndarray, np.ndarray]]


def networks(model: Model | Ensemble) -> Sequence[Model]:
    """The model itself, or an ensemble's members."""
    return model.members if isinstance(model, Ensemble) else [model]


def rows(model: Model) -> np.ndarray:
    """Some rows as the training set's may be, float32 [N, features]: always the same ones of a model."""
    random, shape = np.random.default_rng(0), (_ROWS, model.num_features)
    spreads = np.resize(_SPREADS, (_ROWS, 1))
    largest = np.float32(model.data_info.get("largest") or 1)
    if not model.scaling:
        return random.random(shape, np.float32) * largest * spreads
    shift, scale = model.scaling
    deviation = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    drawn = random.standard_normal(shape, np.float32) if shift.any() else random.random(shape, np.float32)
    return shift + deviation * spreads * drawn


def logits(layers: Layers, x: np.ndarray) -> np.ndarray:
    """The network's outputs before the softmax, of the type of `x`, which decides the precision."""
    for n, (weights, biases) in enumerate(layers):
        x = x @ weights.astype(x.dtype).T + biases.astype(x.dtype)
        if n < len(layers) - 1:
            x = np.maximum(x, 0)
    return x


def softmax(outputs: np.ndarray) -> np.ndarray:
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def scaled(model: Model, x: np.ndarray) -> np.ndarray:
    """`x` as the network's input, of the type of `x`."""
    shift, scale = (part.astype(x.dtype) for part in model.scaling) if model.scaling else (0, 1)
    return (x - shift) * scale


def loses(model: Model, folded: Layers) -> bool:
    """Whether layers that take unscaled inputs give other probabilities than those that take scaled ones, by more than
    LOSS: where a feature's mean is large against its deviation, float32 has no digits left for it."""
    x = rows(model)
    exact = logits(model.params, scaled(model, x.astype(np.float64)))
    with np.errstate(all="ignore"):
        lost = np.abs(logits(folded, x) - exact).max()
        apart = np.abs(logits(model.params, scaled(model, x)) - exact).max()
    return not (lost - apart) / 2 <= LOSS  # a softmax passes on half of it at most; NaN is lost, too


def check(model: Model | Ensemble, form: str, content: bytes) -> None:
    """Raises InputError unless an exported file gives the probabilities that predict gives, as far as float32 has them.

    A network that computes in bfloat16 is asked in float32 where it was exported so.
    """
    if form != "stablehlo":
        model = model.in_float32()
    x = rows(networks(model)[0])
    expected = model.predict(x).probabilities
    exact = np.mean([softmax(logits(each.params, scaled(each, x.astype(np.float64)))) for each in networks(model)],
                    axis=0)
    allowed = 2 * LOSS + 4 * np.abs(expected - exact).max()
    worst = np.abs(_READERS[form](content, x, model) - expected).max()
    if not worst <= allowed:
        raise InputError(f"--format={form}: the exported network would not predict what the run does, its "
                         f"probabilities are off by {worst:.2g}: nothing was written; choose another format, and "
                         "report this, please")


def _arrays(arrays: dict[str, np.ndarray], x: np.ndarray, weights: str, biases: str, step: int) -> np.ndarray:
    """Probabilities by named arrays, of which those of layer n are numbered `step` * n."""
    if "shift" in arrays:
        x = (x - arrays["shift"]) * arrays["scale"]
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    while (name := weights.format(step * len(layers))) in arrays:
        layers.append((arrays[name], arrays[biases.format(step * len(layers))]))
    return softmax(logits(layers, x))


def _npz(content: bytes, x: np.ndarray, model: Model | Ensemble) -> np.ndarray:
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    begins = [f"m{number}." for number in range(len(model.members))] if isinstance(model, Ensemble) else [""]
    own = [{name.removeprefix(begin): array for name, array in arrays.items() if name.startswith(begin)}
           for begin in begins]
    return np.mean([_arrays(each, x, "w{}", "b{}", 1) for each in own], axis=0)


def _safetensors(content: bytes, x: np.ndarray, model: Model | Ensemble) -> np.ndarray:
    arrays = need("safetensors.numpy", "export", "--format=safetensors").load(content)
    return _arrays(arrays, x, "{}.weight", "{}.bias", 2)


def _onnx(content: bytes, x: np.ndarray, model: Model | Ensemble) -> np.ndarray:
    evaluator: Any = need("onnx.reference", "export", "--format=onnx").ReferenceEvaluator(content)
    return np.asarray(evaluator.run(["probabilities"], {"x": x})[0])


def _stablehlo(content: bytes, x: np.ndarray, model: Model | Ensemble) -> np.ndarray:
    from jax import export

    with backend.prepared(model.config_here):
        return np.asarray(export.deserialize(bytearray(content)).call(x))


_READERS = {"npz": _npz, "safetensors": _safetensors, "onnx": _onnx, "stablehlo": _stablehlo}
