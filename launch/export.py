"""Exports a run's model for other programs, its input scaling inside.

    python -m launch.export RUN --format=safetensors|npz|onnx|stablehlo --output=FILE

safetensors  weights and biases of a torch.nn.Sequential of Linear and ReLU:
                 net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
                 tensors = safetensors.torch.load_file(FILE)
                 shift, scale = tensors.pop("shift", 0), tensors.pop("scale", 1)
                 net.load_state_dict(tensors); logits = net((x - shift) * scale)
npz          w0, b0, w1, b1, ... and classes for NumPy:
                 model = numpy.load(FILE)
                 if "shift" in model: x = (x - model["shift"]) * model["scale"]
                 for layer in range(layers): x = x @ model[f"w{layer}"].T + model[f"b{layer}"], relu between them
onnx         the whole model: x [N, features] to probabilities [N, classes] and class [N]
stablehlo    the same for jax.export.deserialize(FILE's bytes).call(x); what it is, is in FILE.json

Of a sweep's folder, the refitted model is exported, with --ensemble the mean of the probabilities of the members that
were kept, as onnx, stablehlo or npz: onnx is one graph, and npz has m0.w0, m0.b0, ..., m1.w0, ...

Where the scaling cannot be put into the first layer's weights without losing digits, safetensors and npz have shift and
scale beside them: the network's inputs are (x - shift) * scale. A line says so. Before a file is written, it is read
back and has to predict what the run does.
"""

from pathlib import Path

from distmlp.errors import listed, remark
from launch import verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("export", __doc__)
    arguments.add_argument("run", action=verb.Named, metavar="RUN", help="a run's folder, its --workdir")
    arguments.add_argument("--format", required=True, help="safetensors, npz, onnx or stablehlo")
    arguments.add_argument("--output", action=verb.Named, required=True, metavar="FILE", help="the file to write")
    verb.add_checkpoint(arguments)
    verb.add_ensemble(arguments)
    given = arguments.parse_args(argv)

    from distmlp.results import export, exported, files, load

    model, output = load.load(Path(given.run), given.checkpoint, given.ensemble), Path(given.output)
    apart = export.export(model, given.format, output)
    scaling = "; its inputs are (x - shift) * scale, with shift and scale from the file" if apart else ""
    print(f"{output}: {export.subject(model)} as {given.format}{scaling}", file=files.remarks(output))
    types = {each.config.compute_dtype for each in exported.networks(model)} - {"float32"}
    if types and given.format != "stablehlo":
        remark(f"the file computes in float32, and predict in {', '.join(types)}: --format=stablehlo gives predict's "
               "numbers")
    if model.columns and (model.columns.words or model.columns.fill):
        features = model.columns.features
        remark(f"the file takes {len(features):,} numbers a row, text and absent values encoded: {listed(features)}; "
               "its metadata has all their names, as columns")
    return 0


if __name__ == "__main__":
    verb.run(main)
