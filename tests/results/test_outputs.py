"""What --output may name: links, devices, pipes, folders, the home; and how a verb ends."""

import errno
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, RunTrain, process_env

from distmlp import Config, InputError, load, train
from distmlp.results import files
from distmlp.results.export import export
from launch import command, compare, evaluate, plan, predict, report
from launch import export as export_verb


@pytest.fixture
def home(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, with a link to a run and two files in it; the current folder is another."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "run").symlink_to(digits_run)
    np.save(folder / "x.npy", np.zeros((1, 64), np.uint8))
    (folder / "plan.json").write_text("{")
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_what_is_read_and_what_a_run_has_written_is_never_replaced(
    call_verb: RunTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{a},{b},{int(a > b)}" for a in range(6) for b in range(6)]
    for name in ("own.csv", "other.csv"):
        Path(name).write_text("\n".join(["a,b,label", *rows, ""]))
    train(Config(dataset="own.csv", test_fraction=0.2, num_epochs=1, batch_size=4, hidden_sizes=(4,),
                 workdir="run"))
    Path("link.csv").symlink_to("other.csv")
    os.link("other.csv", "hard.csv")
    Path("folder").mkdir()
    shutil.copy("other.csv", "folder/test.csv")
    for name in ("starting.jsonl", "ledger-old-2.jsonl"):
        Path("run", name).write_text("")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read = "would replace what is read"
    for verb, *arguments, output, said in (
        ("evaluate", "run", "own.csv", read),
        ("evaluate", "run", "--dataset=folder", "folder/test.csv", read),
        ("predict", "run", "other.csv", "other.csv", read),
        ("predict", "run", "other.csv", "link.csv", read),
        ("predict", "run", "other.csv", "hard.csv", read),
        ("predict", "run", "other.csv", "own.csv", read),
        ("export", "run", "--format=npz", "own.csv", read),
        ("report", "run", "run/metrics.jsonl", "is a file of the run in"),
        ("report", "run", "run/starting.jsonl", "is a file of the run in"),
        ("predict", "run", "other.csv", "run/ledger-old-2.jsonl", "is a file of the run in"),
        ("predict", "run", "other.csv", "run/ledger.csv", ""),
        ("predict", "run", "other.csv", "run/ledger.csv", ""),
        ("report", "run", "run/report.html", ""),
        ("report", "run", "run/report.html", ""),
    ):
        done = call_verb(verb, *arguments, f"--output={output}")
        assert (done.returncode, said in done.stderr) == (2 if said else 0, True), done.stderr
        assert done.stderr.count("\n") == bool(said)
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, target in (("near", "kept"), ("far", "there/kept"), ("again", "far"), ("new", "there/made")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "kept").write_bytes(b"old")
    for name, target in (("near", "kept"), ("far", "there/kept"), ("again", "there/kept"), ("new", "there/made")):
        files.write(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_text() == name
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=f"loop cannot be written .{os.strerror(errno.ELOOP)}"):
        files.write(tmp_path / "loop", b"new")
    assert (tmp_path / "loop").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["again", "far", "kept", "kept", "loop", "made", "near", "new", "there"])


def test_a_file_keeps_its_permissions_and_takes_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    path.touch()
    path.chmod(0o640)
    files.write(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


def test_processes_that_have_the_same_number_do_not_share_a_file(tmp_path: Path) -> None:
    """As in containers, each of which has a process 1."""
    begun = set()
    for _ in range(2):
        with runpy.run_path(files.__file__)["whole"](tmp_path / "p.csv") as new:
            begun.add(new)
            new.touch()
    assert len(begun) == 2


def test_a_page_takes_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmlp.results.report.report", lambda *_: "K\udce4fer")
    assert report.main(["run", f"--output={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").read_bytes() == b"K\\udce4fer"


def test_a_device_and_a_pipe_are_written_to(digits_run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    export(load(digits_run), "stablehlo", tmp_path / "pipe")
    reader.join()
    assert len(read[0]) > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "null").symlink_to(os.devnull)
    files.write(tmp_path / "null", b"gone")
    assert (tmp_path / "null").is_symlink()
    with pytest.raises(InputError, match=r"^--output=/dev/full cannot be written .No space left on device"):
        files.write(Path("/dev/full"), b"too much")


def test_the_standard_output_has_the_bytes_and_nothing_else(digits_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.export", str(digits_run), "--format=npz", "--output=/dev/stdout"]
    done = subprocess.run(command, cwd=tmp_path, env=process_env(), capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"/dev/stdout: the checkpoint of step 69 as npz\n")
    (tmp_path / "model.npz").write_bytes(done.stdout)
    with np.load(tmp_path / "model.npz") as arrays:
        assert "b1" in arrays


def test_a_result_that_finds_no_room_is_an_error(digits_run: Path, tmp_path: Path) -> None:
    def ended(verb: str, *arguments: str, into: str) -> tuple[int, str]:
        with Path(into).open("w") as output:
            done = subprocess.run(
                [sys.executable, "-m", f"launch.{verb}", *arguments], cwd=tmp_path, env=process_env(), stdout=output,
                stderr=subprocess.PIPE, text=True, check=False, timeout=300,
            )  # fmt: skip
        return done.returncode, done.stderr

    full = "standard output could not be written (No space left on device): make room, or send it to another file"
    assert ended("compare", str(digits_run), str(digits_run), into="/dev/full") == (2, f"distmlp: error: {full}\n")
    sweep = ["--num_epochs=1", "--hidden_sizes=4", "--folds=2", "--workdir=sweep"]
    assert ended("sweep", *sweep, into="/dev/full") == (0, "")  # its folder has it all
    assert (tmp_path / "sweep" / "sweep.jsonl").exists()


@pytest.mark.parametrize("output", [".", "/", "..", "folder"])
def test_a_folder_is_one_line(digits_run: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "folder").mkdir()
    for form in ("npz", "stablehlo"):
        with pytest.raises(InputError, match=r"^--output=\S+ cannot be written \(Is a directory\): give another file$"):
            export_verb.main([str(digits_run), f"--format={form}", f"--output={output}"])
    with pytest.raises(InputError, match=r"^--output=\S+ cannot be written \(Is a directory\): give another file$"):
        report.main([str(digits_run), f"--output={output}"])
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_both_files_or_none(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").mkdir()
    with pytest.raises(InputError, match=r"model\.json cannot be written \(Is a directory\)"):
        export(load(digits_run), "stablehlo", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_the_home_folder_in_every_verb(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["~/run"]) == 0
    assert predict.main(["~/run", "~/x.npy"]) == 0
    assert compare.main(["~/run", "~/run"]) == 0
    assert export_verb.main(["~/run", "--format=npz", "--output=~/model.npz"]) == 0
    assert report.main(["~/run", "~/run", "--output=~/page.html"]) == 0
    assert {"model.npz", "page.html"} < {path.name for path in home.iterdir()}
    for main, arguments in (
        (evaluate.main, ["~/run", "--dataset=~/x.npz"]), (report.main, ["~/run", "--plan=~/plan.json"]),
        (plan.main, ["--dataset=~/x.npz"]),
    ):
        with pytest.raises(InputError, match=f"={home}/"):
            main(arguments)
    with pytest.raises(InputError, match=r"^~nobody-there/run is no folder"):
        evaluate.main(["~nobody-there/run"])
    with pytest.raises(InputError, match=r"^--plan=gs://bucket/plan\.json: give a path, not a URL"):
        report.main(["~/run", "--plan=gs://bucket/plan.json"])
    assert not list(tmp_path.glob("~*"))


def test_predict_ends_by_what_it_could_read(
    digits_run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, there = str(digits_run), str(home / "x.npy")
    assert predict.main([run, there]) == 0
    assert predict.main([run, there, "absent.npy"]) == predict.main([run, "absent.npy", there, there]) == 1
    assert predict.main([run, "absent.npy"]) == predict.main([run, "absent.npy", "absent.png"]) == 2
    assert capsys.readouterr().err == "distmlp: error: absent.npy does not exist\n" * 4 + (
        "distmlp: error: absent.png does not exist\n")


@pytest.mark.parametrize("kept", ["finished members stay", ""])
def test_a_signal_leaves_no_part_of_a_file(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left: list[Path] = []

    def ended(code: int) -> None:
        left.extend(tmp_path.iterdir())
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(signal, "getsignal", lambda signum: command._nothing_to_save)
    reader, writer = socket.socketpair()
    writer.send(bytes([signal.SIGTERM]))
    with reader, writer, files.whole(tmp_path / "p.csv") as new:
        new.write_text("half of it")
        with pytest.raises(SystemExit, match="143"):
            command._end_at_once(reader, kept)
        new.touch()
    assert (left, files.begun) == ([], set())
    later = f"; {kept}" if kept else ""
    assert capfd.readouterr().err == f"distmlp: SIGTERM: stopped at once{later}\n"


def test_a_fault_is_no_finding(run_verb: RunTrain, digits_run: Path, tmp_path: Path) -> None:
    """1 says that runs part: a fault of compare's own is another code."""
    fault = "import distmlp.results.compare as module\nmodule.compare = lambda a, b: 1 / 0\n"
    (tmp_path / "sitecustomize.py").write_text(fault)
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = run_verb("compare", str(digits_run), str(digits_run), env={"PYTHONPATH": paths})
    assert done.returncode == os.EX_SOFTWARE
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("distmlp: error: ZeroDivisionError: division by zero\n")


def test_what_this_user_may_not_read_is_one_line(run_verb: RunTrain, digits_run: Path, tmp_path: Path) -> None:
    fault = ("import distmlp.results.compare as module\n"
             "def refuse(a, b):\n"
             "    raise PermissionError(13, 'Permission denied', 'secret')\n"
             "module.compare = refuse\n")  # fmt: skip
    (tmp_path / "sitecustomize.py").write_text(fault)
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = run_verb("compare", str(digits_run), str(digits_run), env={"PYTHONPATH": paths})
    assert (done.returncode, done.stderr) == (2, "distmlp: error: secret is not for this user to read or to write "
                                              "(Permission denied): change its permissions, or name another\n")
