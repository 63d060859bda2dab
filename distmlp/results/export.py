"""A model as a file that other programs load. All take raw inputs: the run's input scaling is inside.

safetensors  for `torch.nn.Sequential` of Linear and ReLU: 0.weight, 0.bias, 2.weight, ...; gives logits
npz          for NumPy: w0, b0, w1, b1, ..., weights [out, in], and classes, metadata; gives logits
onnx         for onnxruntime and others: x [N, features] -> probabilities [N, classes], class [N], a number from 0
stablehlo    for `jax.export.deserialize`: x [N, features] -> probabilities [N, classes]; metadata in FILE.json

metadata: the classes, the names of the features where they have some (COLUMN=WORD is 1 where a column of text has this
word, and else 0), the run's settings, the step and the version, as JSON texts. All numbers are float32. onnx and
stablehlo scale the inputs as training does. In the other two the first layer does it: its weights and biases are
computed in float64 and rounded once. Where that would lose digits, they have shift and scale [features] instead, and
the network's inputs are (x - shift) * scale.

An ensemble's probabilities are the mean of its members'. npz has their arrays as m0.w0, m0.b0, ..., m1.w0, ...; onnx
and stablehlo are one program. safetensors is for a single network.
"""

import io
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import model as network
from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.results import exported
from distmlp.results.ensemble import Ensemble
from distmlp.results.extras import need
from distmlp.results.files import write
from distmlp.results.models import Model

_OPSET, _IR_VERSION = 17, 8  # of ONNX: what runtimes since 2022 read
_LIMITED = ("onnx", "stablehlo")  # protobuf and flatbuffers end at 2 GiB
_MOST = 2_000_000_000  # bytes of parameters in them, which leaves room for the rest


def export(model: Model | Ensemble, form: str, output: Path) -> bool:
    """Writes the model to a file, whole or not at all, once the file predicts what the model does.

    Returns:
      whether the file leaves the scaling of its inputs to who uses it: it has shift and scale.

    Raises:
      InputError: an unknown format, one that an ensemble or so many parameters cannot have, a package that it needs is
        missing, or the file cannot be written.
    """
    if form not in FORMATS:
        raise InputError(f"--format={form}: choose one of {', '.join(FORMATS)}")
    if isinstance(model, Ensemble):
        if form == "safetensors":
            raise InputError("--format=safetensors is for a single network: export an ensemble as onnx, npz or "
                             "stablehlo")
        if not model.alike:
            raise InputError(f"the members of {model.run} encode text or absent values as each has learned to, so that "
                             f"they have no inputs in common: export one of them, as {model.members[0].run}")
    size = sum(part.nbytes for each in exported.networks(model) for layer in each.params for part in layer)
    if form in _LIMITED and size > _MOST:
        others = "npz" if isinstance(model, Ensemble) else "npz or safetensors"
        raise InputError(f"--format={form} holds {_MOST / 1e9:g} GB of parameters at most, and {model.run} has "
                         f"{size / 1e9:.1f}: export it as {others}")
    content = FORMATS[form](model)
    exported.check(model, form, content)
    beside = {".json": json.dumps(metadata(model)).encode()} if form == "stablehlo" else {}
    write(output, content, beside, read=model.sources)
    return form in ("safetensors", "npz") and any(parameters(each)[0] for each in exported.networks(model))


def subject(model: Model | Ensemble) -> str:
    """What is exported, for people."""
    if isinstance(model, Ensemble):
        return f"the mean of {len(model.members)} members"
    return f"the checkpoint of step {model.step}"


def metadata(model: Model | Ensemble) -> dict[str, str]:
    """What travels with the arrays: JSON texts by name; an ensemble's settings and steps are lists, of its members'."""
    columns = {"columns": json.dumps(model.data_info["columns"])} if model.data_info.get("columns") else {}
    settings, steps = zip(*((own.config.settings(), own.step) for own in exported.networks(model)), strict=True)
    several = isinstance(model, Ensemble)
    return columns | {
        "classes": json.dumps(model.classes), "settings": json.dumps(settings if several else settings[0]),
        "step": json.dumps(steps if several else steps[0]), "distmlp": json.dumps(version("distmlp")),
    }


def _named(model: Model | Ensemble) -> list[tuple[str, Model]]:
    """The networks, and what the names of each one's arrays begin with."""
    if isinstance(model, Ensemble):
        return [(f"m{number}.", member) for number, member in enumerate(model.members)]
    return [("", model)]


def parameters(model: Model) -> tuple[dict[str, Any], exported.Layers]:
    """What a file of arrays has, all float32: shift and scale, or nothing where the first layer has taken the scaling
    in; and the layers' weights [out, in] and biases [out]."""
    if not model.scaling:
        return {}, model.params
    (weights, biases), (shift, scale) = model.params[0], (part.astype(np.float64) for part in model.scaling)
    scaled = weights * scale
    with np.errstate(over="ignore"):
        first = scaled.astype(np.float32), (biases - scaled @ shift).astype(np.float32)
    folded = [first, *model.params[1:]]
    if exported.loses(model, folded):
        return dict(zip(("shift", "scale"), model.scaling, strict=True)), model.params
    return {}, folded


def _safetensors(model: Model) -> bytes:
    numpy = need("safetensors.numpy", "export", "--format=safetensors")
    arrays, layers = parameters(model)
    for layer, (weights, biases) in enumerate(layers):
        arrays |= {f"{2 * layer}.weight": weights, f"{2 * layer}.bias": biases}
    return numpy.save(arrays, metadata(model))


def _npz(model: Model | Ensemble) -> bytes:
    arrays: dict[str, Any] = {}
    for begin, each in _named(model):
        own, layers = parameters(each)
        for layer, (weights, biases) in enumerate(layers):
            own |= {f"w{layer}": weights, f"b{layer}": biases}
        arrays |= {begin + name: array for name, array in own.items()}
    file = io.BytesIO()
    np.savez(file, classes=np.array(model.classes), metadata=np.array(json.dumps(metadata(model))), **arrays)
    return file.getvalue()


def _onnx(model: Model | Ensemble) -> bytes:
    onnx = need("onnx", "export", "--format=onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    arrays: dict[str, np.ndarray] = {}
    nodes, most = [], "logits"
    for begin, each in _named(model):
        own, layers = _onnx_layers(helper, each, begin)
        arrays |= own
        nodes += [*layers, helper.make_node("Softmax", [f"{begin}logits"], [f"{begin}probabilities"], axis=1)]
    if isinstance(model, Ensemble):
        most = "probabilities"
        nodes.append(helper.make_node("Mean", [f"{begin}{most}" for begin, _ in _named(model)], [most]))
    nodes.append(helper.make_node("ArgMax", [most], ["class"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes, "distmlp", [helper.make_tensor_value_info("x", kind.FLOAT, ["N", model.num_features])],
        [helper.make_tensor_value_info("probabilities", kind.FLOAT, ["N", len(model.classes)]),
         helper.make_tensor_value_info("class", kind.INT64, ["N"])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION,
                              producer_name="distmlp", producer_version=version("distmlp"))
    helper.set_model_props(proto, metadata(model))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _onnx_layers(helper: Any, model: Model, begin: str) -> tuple[dict[str, np.ndarray], list[Any]]:
    """The arrays and the nodes between x and logits, whose names begin so."""
    arrays: dict[str, np.ndarray] = {}
    nodes: list[Any] = []
    name, last = "x", len(model.params) - 1

    def add(kind: str, inputs: Sequence[str], output: str, **more: int) -> str:
        nodes.append(helper.make_node(kind, [*inputs], [begin + output], **more))
        return begin + output

    if model.scaling:
        arrays |= {f"{begin}shift": model.scaling[0], f"{begin}scale": model.scaling[1]}
        name = add("Mul", [add("Sub", [name, f"{begin}shift"], "shifted"), f"{begin}scale"], "inputs")
    for layer, (weights, biases) in enumerate(model.params):
        own = {f"{begin}w{layer}": weights, f"{begin}b{layer}": biases}
        arrays |= own
        name = add("Gemm", [name, *own], "logits" if layer == last else f"product{layer}", transB=1)
        if layer < last:
            name = add("Relu", [name], f"layer{layer}")
    return arrays, nodes


def _stablehlo(model: Model | Ensemble) -> bytes:
    need("flatbuffers", "export", "--format=stablehlo")
    from jax import export as jax_export

    def probabilities(x: jax.Array) -> jax.Array:
        each = [jnp.exp(network.batched_predict(
            own.params, network.scale_inputs(x, own.scaling), own.config.compute_dtype  # type: ignore[arg-type]
        )) for own in exported.networks(model)]  # fmt: skip
        return sum(each[1:], each[0]) / np.float32(len(each)) if len(each) > 1 else each[0]

    shape = jax.ShapeDtypeStruct(jax_export.symbolic_shape(f"N, {model.num_features}"), np.float32)
    with backend.prepared(model.config_here):
        program = jax_export.export(jax.jit(probabilities), platforms=("cpu", "cuda", "rocm", "tpu"))(shape)
    return bytes(program.serialize())


FORMATS: dict[str, Callable[[Any], bytes]] = {
    "safetensors": _safetensors, "npz": _npz, "onnx": _onnx, "stablehlo": _stablehlo,
}
