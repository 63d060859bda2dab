"""The plan's step time against the measured one, on the devices that are here, for three sizes of network.

    python benchmarks/prediction.py

Rates (products, memory, kernels) are measured in the same run if the device is not in the table of cards.
"""

import dataclasses
import tempfile

import harness

from distmlp import Config, train
from distmlp.plan import plan

SIZES = {"small": ((128, 128), 128), "tutorial": ((512, 512), 128), "large": ((2048, 2048), 1024)}


def main() -> None:
    args = harness.arguments(__doc__, repetitions=3)
    rows, results = [], {}
    for name, (hidden_sizes, batch_size) in SIZES.items():
        config = Config(dataset="synthetic", synthetic_examples=16384, hidden_sizes=hidden_sizes, num_devices=1,
                        batch_size=batch_size, input_scaling="unit", num_epochs=3, eval_every_epochs=0)  # fmt: skip
        measured, predicted, bounds = [], [], set()
        for _ in range(1 if args.quick else args.repetitions):
            found = plan.make(config)
            predicted.append(found["predicted_step_seconds"])
            bounds.add(found["predicted"]["bound"])
            with tempfile.TemporaryDirectory() as folder:
                history = train(dataclasses.replace(config, workdir=folder)).history
            seconds = [line["seconds"] for line in history if "seconds" in line][1:]  # the first has the warm-up
            measured.append(min(seconds) / found["steps_per_epoch"])
        ratios = [a / b for a, b in zip(measured, predicted, strict=True)]
        results[name] = {"predicted": predicted, "measured": measured}
        rows.append([f"{name}: {'-'.join(map(str, hidden_sizes))}, batch {batch_size}",
                     harness.spread([1e6 * seconds for seconds in predicted]), "/".join(sorted(bounds)),
                     harness.spread([1e6 * seconds for seconds in measured]), harness.spread(ratios)])  # fmt: skip
    header = ["network", "µs a step predicted", "bound by", "measured", "measured / predicted"]
    harness.report(args, "Prediction", [harness.table(header, rows)], results)


if __name__ == "__main__":
    main()
