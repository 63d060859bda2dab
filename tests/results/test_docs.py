"""The programs in docs/results.md do what they say."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from conftest import REPOSITORY

from distmlp import Config, load
from distmlp.data import datasets
from distmlp.results.export import export


def test_the_programs_of_the_documentation_run(digits_run: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "results.md").read_text(), re.DOTALL)
    test, model = datasets.load(Config()).test, load(digits_run)
    x, y = test[np.arange(50)]
    expected = model.predict(x)
    for form, name in (("safetensors", "model.safetensors"), ("npz", "model.npz"), ("onnx", "model.onnx"),
                       ("stablehlo", "model.bin")):
        export(model, form, tmp_path / name)  # the tests' working folder
    found = []
    for block in blocks:
        names: dict[str, Any] = {"RUN": digits_run, "x": x, "y": y}
        exec(block, names)
        found.append(names["predictions"].probabilities if "predictions" in names else names["probabilities"])
    assert len(found) == 5
    for probabilities in found:
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
