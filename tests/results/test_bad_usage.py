"""Wrong input for each verb: one line that says what to do, and nothing written."""

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import flip_bit

from distmlp import InputError

VERBS = {
    "evaluate": ["RUN"], "predict": ["RUN", "x.npy"], "export": ["RUN", "--format=npz", "--output=out.npz"],
    "report": ["RUN", "--output=out.html"], "compare": ["RUN", "RUN"],
}  # fmt: skip


def fails(verb: str, run: Path, *more: str) -> str:
    """The one line with which a verb refuses its arguments."""
    arguments = [str(run) if argument == "RUN" else argument for argument in VERBS[verb]]
    with pytest.raises(InputError) as caught:
        importlib.import_module(f"launch.{verb}").main([*arguments, *more])
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in Path().glob("out*")) == []
    return str(caught.value)


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((1, 64), np.uint8))
    return Path(shutil.copytree(digits_run, tmp_path / "copy"))


@pytest.mark.parametrize("verb", VERBS)
def test_no_run_no_checkpoint_a_damaged_one(verb: str, copy: Path, tmp_path: Path) -> None:
    assert "absent is no folder: give the --workdir of a run" in fails(verb, tmp_path / "absent")
    assert "holds no run" in fails(verb, tmp_path)
    assert "unrecognized arguments: --bogus" in fails(verb, copy, "--bogus")
    for folder in (copy / "checkpoints").iterdir():
        flip_bit(folder)
    if verb != "compare":  # which is there to find it
        assert "is damaged (" in fails(verb, copy)
    shutil.rmtree(copy / "checkpoints")
    assert "holds no checkpoint yet" in fails(verb, copy)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "compare"])
def test_a_checkpoint_that_there_is_not(verb: str, copy: Path) -> None:
    assert "--checkpoint=7: " in fails(verb, copy, "--checkpoint=7")
    assert "give best, newest or a step's number" in fails(verb, copy, "--checkpoint=last")


def test_what_cannot_be_written_or_is_not_known(copy: Path, npz: str) -> None:
    for verb in ("export", "report"):
        assert "--output=absent/out cannot be written" in fails(verb, copy, "--output=absent/out")
    assert "--format=pt: choose one of " in fails("export", copy, "--format=pt")
    assert "--split=dev: choose one of " in fails("evaluate", copy, "--split=dev")
    assert "has no validation set" in fails("evaluate", copy, "--split=validation")
    assert "features" in fails("evaluate", copy, f"--dataset={npz}")
    for verb, *empty in (("evaluate", "--dataset="), ("evaluate", "--dataset", ""), ("predict", "--checkpoint=")):
        flag = empty[0].rstrip("=")
        assert f"argument {flag}: is empty, as if by a shell variable that is not set" in fails(verb, copy, *empty)


@pytest.mark.parametrize("line", [
    "evaluate RUN=", "predict RUN= x.npy", "predict r FILE=", "export RUN= --format=npz --output=o", "report RUN=",
    "compare RUN_A= r", "compare r RUN_B=", "pack SOURCE= --output=o", "pack x.npy --output=", "pack --check=",
    "predict r x.npy --output=", "evaluate r --output=", "export r --format=npz --output=", "report r --output=",
    "report r --plan=", "verify --output=", "configs --copy=",
])  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(line: str) -> None:
    verb, *arguments = line.split()
    given = [word if word.startswith("--") else re.sub(r"^[A-Z_]+=$", "", word) for word in arguments]
    name = next(word for word in arguments if word.endswith("=")).rstrip("=")
    with pytest.raises(InputError, match=f"^argument {name}: is empty, as if by a shell variable that is not set: "):
        importlib.import_module(f"launch.{verb}").main(given)


@pytest.mark.parametrize("verb", VERBS)
def test_a_url_is_no_path(verb: str, copy: Path) -> None:
    with pytest.raises(InputError, match=r"^RUN(_A)?=gs://bucket/run: give a path, not a URL; buckets can be mounted"):
        importlib.import_module(f"launch.{verb}").main(["gs://bucket/run", *VERBS[verb][1:]])
    option = {"export": "--output", "report": "--output", "evaluate": "--dataset"}.get(verb)
    if option:
        assert fails(verb, copy, f"{option}=s3://b/x").startswith(f"{option}=s3://b/x: give a path, not a URL")
    if verb == "predict":
        assert fails(verb, copy, "https://host/3.png").startswith("FILE=https://host/3.png: give a path, not a URL")
    assert not list(Path().glob("*:"))


def test_files_of_another_width_are_one_line_each(
    wine_run: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch import predict

    Path("torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert predict.main([str(wine_run), "torn.png", "x.npy"]) == 2  # for nothing could be predicted
    assert capsys.readouterr().err.splitlines() == [
        "distmlp: error: the run was trained on rows of 13 values, which are no pictures: "
        "give rows in a .npy, .npz or .csv file",
        "distmlp: error: x.npy: rows have 64 values, but the run was trained on 13",
    ]
