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
"""

import io
import json
from collections.abc import Callable
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
from distmlp.results.extras import need
from distmlp.results.files import write
from distmlp.results.load import Model

_OPSET, _IR_VERSION = 17, 8  # of ONNX: what runtimes since 2022 read


def export(model: Model, form: str, output: Path) -> bool:
    """Writes the model to a file, whole or not at all, once the file predicts what the model does.

    Returns:
      whether the file leaves the scaling of its inputs to who uses it: it has shift and scale.

    Raises:
      InputError: an unknown format, a package that it needs is missing, or the file cannot be written.
    """
    if form not in FORMATS:
        raise InputError(f"--format={form}: choose one of {', '.join(FORMATS)}")
    content = FORMATS[form](model)
    exported.check(model, form, content)
    write(output, content, {".json": json.dumps(metadata(model)).encode()} if form == "stablehlo" else {})
    return form in ("safetensors", "npz") and bool(parameters(model)[0])


def metadata(model: Model) -> dict[str, str]:
    """What travels with the arrays: JSON texts by name."""
    columns = {"columns": json.dumps(model.data_info["columns"])} if model.data_info.get("columns") else {}
    return columns | {
        "classes": json.dumps(model.classes), "settings": json.dumps(model.config.settings()),
        "step": json.dumps(model.step), "distmlp": json.dumps(version("distmlp")),
    }


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


def _npz(model: Model) -> bytes:
    arrays, layers = parameters(model)
    for layer, (weights, biases) in enumerate(layers):
        arrays |= {f"w{layer}": weights, f"b{layer}": biases}
    file = io.BytesIO()
    np.savez(file, classes=np.array(model.classes), metadata=np.array(json.dumps(metadata(model))), **arrays)
    return file.getvalue()


def _onnx(model: Model) -> bytes:
    onnx = need("onnx", "export", "--format=onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    arrays: dict[str, np.ndarray] = {}
    nodes, name = [], "x"
    if model.scaling:
        arrays |= dict(zip(("shift", "scale"), model.scaling, strict=True))
        nodes += [helper.make_node("Sub", [name, "shift"], ["shifted"]),
                  helper.make_node("Mul", ["shifted", "scale"], ["inputs"])]
        name = "inputs"
    last = len(model.params) - 1
    for layer, (weights, biases) in enumerate(model.params):
        arrays |= {f"w{layer}": weights, f"b{layer}": biases}
        product = "logits" if layer == last else f"product{layer}"
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [product], transB=1))
        if layer < last:
            name = f"layer{layer}"
            nodes.append(helper.make_node("Relu", [product], [name]))
    nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
              helper.make_node("ArgMax", ["logits"], ["class"], axis=1, keepdims=0)]
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


def _stablehlo(model: Model) -> bytes:
    need("flatbuffers", "export", "--format=stablehlo")
    from jax import export as jax_export

    def probabilities(x: jax.Array) -> jax.Array:
        return jnp.exp(network.batched_predict(
            model.params, network.scale_inputs(x, model.scaling), model.config.compute_dtype  # type: ignore[arg-type]
        ))

    shape = jax.ShapeDtypeStruct(jax_export.symbolic_shape(f"N, {model.num_features}"), np.float32)
    with backend.prepared(model.config_here):
        exported = jax_export.export(jax.jit(probabilities), platforms=("cpu", "cuda", "rocm", "tpu"))(shape)
    return bytes(exported.serialize())


FORMATS: dict[str, Callable[[Model], bytes]] = {
    "safetensors": _safetensors, "npz": _npz, "onnx": _onnx, "stablehlo": _stablehlo,
}
