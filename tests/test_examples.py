"""The programs in examples/ run as their first lines say, in short forms."""

import contextlib
import dataclasses
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, process_env

from distmlp import load
from distmlp.results.export import export

EXAMPLES = REPOSITORY / "examples"


def start(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    done = subprocess.run(command, env=process_env(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def run(program: str, *arguments: str) -> str:
    """The last line that it prints."""
    return start(program, *arguments).stdout.splitlines()[-1]


def test_every_example_is_tested() -> None:
    tested = re.findall(r'(?:run|start)\("(\w+\.py)"', Path(__file__).read_text())
    assert sorted(tested) == sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "wandb_offline.py")


@pytest.mark.parametrize("program", ["optuna_pruning", "mlflow_tracking", "wandb_offline"])
def test_a_word_after_each_line_takes_few_lines(program: str) -> None:
    text = (EXAMPLES / f"{program}.py").read_text()
    assert "on_line=" in text
    assert len([line for line in text.splitlines() if line]) < 15


def test_optuna_ends_runs_that_fall_behind() -> None:
    done = start("optuna_pruning.py")
    assert "pruned" in done.stderr
    ended = [int(epoch) for epoch in re.findall(r"epoch +(\d).*\n +step", done.stdout)]  # each but the last run's
    assert (len(ended), min(ended) < 4, max(ended)) == (7, True, 4)


def test_mlflow_keeps_settings_and_lines(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e '.[examples]'")
    start("mlflow_tracking.py")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        ((rate,),) = database.execute("select value from params where key = 'learning_rate'")
        losses = [value for (value,) in database.execute("select value from metrics where key = 'train_loss' "
                                                         "order by step")]  # fmt: skip
    assert rate == "0.01"
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)


def test_a_dataset_of_ones_own(tmp_path: Path) -> None:
    said = run("custom_dataset.py", "--epochs=5", f"--workdir={tmp_path / 'run'}")
    right, total = map(int, re.findall(r"\d+", said))
    assert total == 360
    assert right > 200  # 36 by chance
    assert load(tmp_path / "run").step == 5 * 23


def test_a_pipeline_of_scikit_learns() -> None:
    said = run("sklearn_pipeline.py")
    decay, accuracy, _ = re.fullmatch(r"best weight decay (.*): accuracy (.*)% ± (.*)% in three folds", said).groups()  # type: ignore[union-attr]
    assert float(decay) in (0.1, 10)
    assert float(accuracy) > 90  # 40 by the most frequent class


def test_an_exported_network_in_pytorch_alone(digits_run: Path, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    model = load(digits_run)
    far = dataclasses.replace(model, scaling=(model.scaling[0] - 3e4, model.scaling[1]))  # too far to be folded
    for each, apart in ((model, False), (far, True)):
        assert export(each, "safetensors", tmp_path / "model.safetensors") == apart
        said = run("exported_to_pytorch.py", str(tmp_path / "model.safetensors"))
        assert said.startswith(f"{(each.predict(images).classes == digits).sum()} of 1797 right")
    imported = re.findall(r"^(?:import|from) (\w+)", (EXAMPLES / "exported_to_pytorch.py").read_text(), re.MULTILINE)
    assert not {"distmlp", "jax"} & set(imported)
