"""Sweeps: members are the runs that `train` makes alone, each is trained once, and what is asked for makes sense."""

import dataclasses
import json
import shutil
import time
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import small_config, write_lines

from distmlp import Config, InputError, load, loop, sweep, train
from distmlp.config import run_flags
from distmlp.data import datasets
from distmlp.errors import DivergedError, ProcessEnded, ReplicaError
from distmlp.many import courses, ending, record, shares, team, vary
from distmlp.many.course import Course
from distmlp.parallel import members
from distmlp.parallel.layout import Layout
from distmlp.progress import Standing
from distmlp.run import swept
from distmlp.run.log import read_lines
from distmlp.run.signals import Watchdog
from launch import command, flags
from launch import sweep as sweep_verb

VARIED = {  # one of each kind of setting that enters a program as numbers, and one that needs a program of its own
    "sgd": (
        {"weight_decay": 1e-3, "class_weight": "balanced", "patience": 1, "num_epochs": 6,
         "eval_every_epochs": 2},
        {"learning_rate": [0.003, 0.03], "momentum": [0.5, 0.9], "shuffle": [True, False]},
    ),
    "adam": (
        {"optimizer": "adam", "schedule": "warmup_cosine", "warmup_steps": 3, "clip_norm": 0.05, "num_epochs": 3,
         "eval_every_epochs": 3, "steps_per_dispatch": 4},  # of an epoch's three steps, and one
        {"learning_rate": [0.003, 0.01], "seed": [0, 3], "hidden_sizes": [(8,), (5,)]},
    ),
}


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one size: what one sweep has traced and compiled, the others use."""
    monkeypatch.setattr("distmlp.many.team._CPU_MEMBERS", 4)


def given(npz: str, name: str = "run", **changes: Any) -> Config:
    defaults: dict[str, Any] = {"input_scaling": "standard", "shuffle": True, "reduction": "invariant", "workdir": name}
    return small_config(npz, **(defaults | changes))


def alone(config: Config, line: dict[str, Any], folds: int) -> Any:
    """The run that is a member's, trained by `train`."""
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in line["settings"].items()}
    fold = {"fold": f"{line['fold']}/{folds}"} if folds else {}
    own = dataclasses.replace(config, **settings, **fold, data_seed=config.drawing_seed, workdir=None)
    return train(own)


def told(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of a sweep, without the timings."""
    lines = [json.loads(line) for line in (Path(folder) / "sweep.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "crc32")} for line in lines]


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.full_xla if kind == "sgd" else ()) for kind in VARIED
])  # fmt: skip
def test_a_member_has_the_bits_of_the_run_alone_under_invariant(
    npz: str, kind: str, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, varied = VARIED[kind]
    config = given(npz, **changes)
    pools: list[int] = []
    put = Layout.put
    monkeypatch.setattr(Layout, "put", lambda *given: pools.append(isinstance(given[1], members.Pool)) or put(*given))
    found = sweep(config, varied, folds=2, keep=0, refit=False)  # on 8 devices
    assert sum(pools) == 1
    assert len([name for name in compilations if "advance" in name]) == len(varied.get("hidden_sizes", [()]))
    assert len(found.members) == 16
    assert len({line["params_sha256"] for line in found.members}) == 16
    config = dataclasses.replace(config, num_devices=1, workdir="one")
    for line in found.members[14:15] if kind == "sgd" else (found.members[1], found.members[14]):
        history = alone(config, line, 2).history
        assert line["params_sha256"] == history[-1]["params_sha256"]
        assert line["steps"] == history[-1]["step"]
        assert [point[2] for point in line["curve"]] == [each.get("validation_accuracy") for each in history[:-1]]
        assert [point[1] for point in line["curve"]] == pytest.approx([each["train_loss"] for each in history[:-1]])


@pytest.mark.parametrize("together", [False, True])
def test_under_fast_it_is_that_run_within_rounding(npz: str, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if together:  # as on accelerators
        monkeypatch.setattr(members, "one_by_one", lambda layout: False)
    config = given(npz, reduction="fast", momentum=0.9, num_epochs=3, patience=2, eval_train=together, num_devices=2)
    found = sweep(config, {"learning_rate": [0.003, 0.01], "seed": [0, 1]}, folds=2, keep=2, refit=False)
    for number in swept.read(found.folder).final["kept"]:  # type: ignore[index] # it is finished
        run = alone(config, found.members[number], 2)
        for name in ("step", "train_loss", "validation_loss", "validation_correct"):
            ours, theirs = ([line[name] for line in lines if name in line] for lines in (
                read_lines(found.folder / f"members/{number}").values, run.history))  # fmt: skip
            np.testing.assert_allclose(ours, theirs, rtol=2e-4)
        kept = load(found.folder / "members" / str(number), "newest")
        for mine, theirs in zip(kept.params, run.params, strict=True):
            np.testing.assert_allclose(mine[0], theirs[0], atol=2e-5)


def test_kept_members_and_the_refitted_model_are_ordinary_runs(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = given(npz, patience=2, num_epochs=6, num_devices=1)
    found = sweep(config, {"learning_rate": [0.003, 0.01, 0.03], "seed": [0, 1]}, folds=2, keep=2)
    by_score = sorted(found.members, key=lambda line: (-line["score"], line["member"]))
    kept = [line["member"] for line in by_score[:2]]
    assert swept.read(found.folder).final["kept"] == kept  # type: ignore[index] # it is finished
    assert {path.name for path in (found.folder / "members").iterdir()} == {*map(str, kept), "refit"}
    for line in by_score[1:2]:
        run = found.folder / "members" / str(line["member"])
        flagged = flags.parse(["train", f"--flagfile={run}/run.flags", f"--workdir={run}"])
        capsys.readouterr()
        history = train(flagged).history  # trains nothing
        assert "nothing to do" in capsys.readouterr().out
        assert history[-1]["params_sha256"] == line["params_sha256"]
        assert run_flags(flagged) == (run / "run.flags").read_text()
        assert load(run).step == line["best_step"]
    best = min(found.table, key=lambda row: -row["score"])
    assert found.best == best["settings"]
    own = [line for line in found.members if line["settings"].items() >= found.best.items()]
    assert best["score"] == pytest.approx(np.mean([line["score"] for line in own]))
    assert best["error"] == pytest.approx(np.std([line["score"] for line in own], ddof=1) / 2)
    steps = round(np.mean([line["best_step"] for line in own]))
    again = train(dataclasses.replace(config, **found.best, max_steps=steps, patience=0, workdir=None)).history
    assert found.refit is not None
    assert (found.refit["params_sha256"], found.refit["steps"]) == (again[-1]["params_sha256"], steps)
    assert found.refit["test_accuracy"] == again[-2]["test_accuracy"]


@pytest.mark.parametrize(("labels", "choose_by"), [([0, 1], "accuracy"), ([0, 1, 2], "roc_auc")])
def test_a_refitted_run_stays_while_its_settings_do_and_needs_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int], choose_by: str
) -> None:
    base = given("any", patience=1, choose_by="roc_auc")
    trained = list[Config]()
    final = {"step": 6, "total_seconds": 1.0, "params_sha256": ""}
    monkeypatch.setattr(loop, "run", lambda config, *more, **others: (
        trained.append(config), SimpleNamespace(history=[{"test_accuracy": 0.5}, final]))[1])  # fmt: skip
    data = SimpleNamespace(validation=None, test=SimpleNamespace(labels=np.array(labels)), called=range(3))
    of_all = SimpleNamespace(shares=SimpleNamespace(whole=lambda config: data), by_number={})
    asked: Any = SimpleNamespace(_config=base, _courses=of_all)
    kept = list[bool]()
    for rate, steps in ((0.1, 8), (0.1, 8), (0.2, 8)):
        setting = {"learning_rate": rate, "max_steps": steps}
        member = vary.Member(0, setting, None, dataclasses.replace(base, **setting))
        of_all.by_number[0] = SimpleNamespace(member=member)
        best = swept.Standing(setting, [{"member": 0, "best_step": 6}], 0.5, None, None)
        ending.Ending._refitted(asked, best, tmp_path / "refit")
        kept.append((tmp_path / "refit").exists())
        (tmp_path / "refit").mkdir(exist_ok=True)
        (tmp_path / "refit" / "run.flags").write_text(run_flags(trained[-1]))
    assert [(config.max_steps, config.choose_by) for config in trained] == [(6, choose_by)] * 3
    assert kept == [False, True, False]  # as it is before it is trained


def test_a_sweep_that_was_cut_off_goes_on_to_the_same(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, varied = given(npz, num_devices=1), {"learning_rate": [0.003, 0.01], "seed": list(range(6))}
    whole = sweep(dataclasses.replace(config, workdir="whole"), varied, folds=2, keep=2)
    adds = []

    def add(self: Any, courses: Any, rung: Any = None) -> None:
        if len(adds) < 3:
            add_whole(self, courses, rung)
        adds.append([course.member.number for course in courses])
        if len(adds) >= 3:
            raise OSError("the power fails")

    add_whole = record.Record.add
    with monkeypatch.context() as patched:
        patched.setattr(record.Record, "add", add)
        with pytest.raises(OSError, match="the power fails"):
            sweep(config, varied, folds=2, keep=2)
    path = Path("run/sweep.jsonl")
    done = path.read_text().splitlines()
    assert 12 <= len(done) < 24
    path.write_text("\n".join([*done[:-2], done[-1][:40]]))  # one line is lost, one is torn
    trained: list[int] = []
    monkeypatch.setattr(record.Record, "add", lambda self, courses, rung=None: (
        trained.extend(course.member.number for course in courses), add_whole(self, courses, rung)))  # fmt: skip
    found = sweep(config, varied, folds=2, keep=2)
    assert len(trained) == 24 - (len(done) - 2)
    assert (found.best, found.table) == (whole.best, whole.table)
    ours, theirs = told("run"), told("whole")
    assert [line.get("member", "end") for line in ours[-2:]] == ["end", "end"]
    key = lambda line: line.get("member", 1000 + bool(line.get("final")))  # noqa: E731
    assert sorted(ours, key=key) == sorted(theirs, key=key)
    trained.clear()
    assert sweep(config, varied, folds=2, keep=2).table == whole.table  # there is nothing to do
    more = sweep(config, varied, folds=2, keep=3)  # --keep may change; this one is trained again
    assert trained == []
    assert len(list((more.folder / "members").iterdir())) == 4
    with pytest.raises(InputError, match=r"holds another sweep \(folds was 2, is 3\): give the same flags"):
        sweep(config, varied, folds=3)
    for changes in ({"batch_size": 10}, {"patience": 1}, {"eval_every_epochs": 2}, {"eval_every_steps": 2}):
        with pytest.raises(InputError, match=rf"holds another sweep \({next(iter(changes))} was "):
            sweep(dataclasses.replace(config, **changes), varied, folds=2, keep=3)
    plan = json.loads(Path("run/sweep.json").read_text())
    plan["settings"] = {name: value for name, value in plan["settings"].items() if name not in record.SCORED_WHEN}
    write_lines(Path("run/sweep.json"), [plan])  # as older ones are
    assert sweep(config, varied, folds=2, keep=3).table == whole.table


def test_a_sweep_whose_members_cannot_be_written_ends_soon(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, train_team = list[int](), team.Team.train

    def patiently(self: team.Team, courses: Any, *more: Any) -> None:
        train_team(self, courses, *more)
        trained.append(len(courses))
        time.sleep(0.1)  # the writer has its turn

    def add(*given: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(team.Team, "train", patiently)
    monkeypatch.setattr(record.Record, "add", add)
    rates = [0.001 * n for n in range(1, 21)]
    with pytest.raises(OSError, match="the disk is full"):
        sweep(given(npz, num_devices=1, num_epochs=1), {"learning_rate": rates}, folds=2, keep=2)
    assert 0 < sum(trained) <= 20  # of 40


def test_of_what_may_be_kept_only_the_best_so_far_is_on_disk(tmp_path: Path) -> None:
    def course(number: int, score: float) -> Any:
        said = {"member": number, "settings": {}, "steps": 1, "choose_by": "accuracy", "score": score}
        return SimpleNamespace(member=SimpleNamespace(number=number), told=lambda: said, lines=[], step=1, seconds=1.0,
                               standing=Standing(), last=[np.ones(3)], best=[np.ones(3)])

    own = record.Record(tmp_path, 0, 2)
    for number, score in enumerate([0.5, 0.4, 0.7, 0.1, 0.6]):
        own.add([course(number, score)])
    assert {path.name for path in (tmp_path / "candidates").iterdir()} == {"2.npz", "4.npz"}


def test_best_settings_that_diverge_when_trained_again_withhold_nothing(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*given: Any, **others: Any) -> Any:
        raise kind("there is a NaN")

    config, varied, kind = given(npz, num_devices=1), {"learning_rate": [0.003, 0.01]}, DivergedError
    said = r"^all 4 members are done, but the best .* with seed 0: give --norefit .* \(there is a NaN\)$"
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", run)
        for _ in range(2):  # the same command tries it again
            with pytest.raises(DivergedError, match=said):
                sweep(config, varied, folds=2, keep=2)
            assert "members      the best 2 in " in capsys.readouterr().out
        with pytest.raises(InputError, match=r"diverged when trained again: give a member's run, as .*/members/\d, or"):
            load("run")
        assert len(load("run", ensemble=True).members) == 2
        assert sweep(config, varied, folds=2, keep=2, refit=False).refit is None
        assert "holds this sweep finished: nothing to do" in capsys.readouterr().out
        kind = ReplicaError
        with pytest.raises(ReplicaError, match=r"^there is a NaN$"):  # of the devices, not of the settings
            sweep(config, varied, folds=2, keep=2)
        assert swept.read(Path("run")).final is None


def test_what_a_finished_sweep_has_kept_stays(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, varied = given(npz, num_devices=1), {"learning_rate": [0.003, 0.01]}
    first = sweep(config, varied, folds=2, keep=2)
    capsys.readouterr()
    sweep(config, varied, folds=2, keep=1)
    assert "nothing to do" in capsys.readouterr().out
    more = sweep(config, varied, folds=2, keep=3, refit=False)
    assert more.refit == first.refit
    names = {path.name for path in Path("run/members").iterdir()}
    assert len(names) == 4
    shutil.rmtree("run/members/refit")
    with pytest.raises(InputError, match=r"lacks \S+/refit: give the same command again"):
        load("run")
    again = sweep(config, varied, folds=2, keep=1)
    assert again.refit is not None
    assert again.refit["params_sha256"] == first.refit["params_sha256"]  # type: ignore[index] # as of the other
    assert {path.name for path in Path("run/members").iterdir()} == names
    record.Record(Path("run"), 0, 4).begin()  # as a larger --keep does, which is then killed
    assert swept.read(Path("run")).final is None
    sweep(config, varied, folds=2, keep=1)
    assert {path.name for path in Path("run/members").iterdir()} == names


def test_what_a_finished_sweep_has_left_is_deleted_when_it_is_given_again(tmp_path: Path) -> None:
    """It was killed after its last line."""
    for name in ("candidates", "processes/1"):
        (tmp_path / name).mkdir(parents=True)
    record.Record(tmp_path, 0, 8).leave()
    assert not [*tmp_path.iterdir()]


def test_a_folder_holds_a_run_or_a_sweep(npz: str) -> None:
    config, varied = given(npz, num_devices=1, num_epochs=1), {"seed": [0, 1]}
    train(dataclasses.replace(config, workdir="of_a_run"))
    sweep(dataclasses.replace(config, workdir="of_a_sweep"), varied, folds=2, refit=False)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"^--workdir=\S+/of_a_run holds a run: give another --workdir$"):
        sweep(dataclasses.replace(config, workdir="of_a_run"), varied, folds=2)
    with pytest.raises(InputError, match=r"^--workdir=\S+/of_a_sweep holds a sweep: give another --workdir$"):
        train(dataclasses.replace(config, workdir="of_a_sweep"))
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_process_says_what_only_it_may_see(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    for dataset, keep, alone in (("gone.npz", 0, True), (npz, -1, False)):
        with pytest.raises(InputError) as caught:
            sweep(given(dataset, num_devices=1), {"learning_rate": [0.01]}, folds=2, keep=keep)
        assert command._speaks_alone(caught.value) == alone


def test_processes_share_the_members_and_the_first_one_merges(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, varied = given(npz, num_devices=1), {"learning_rate": [0.003, 0.01, 0.03], "seed": list(range(4))}
    whole = sweep(dataclasses.replace(config, workdir="whole"), varied, folds=2, keep=2)
    for name, value in (("WORLD_SIZE", "3"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    for process in (2, 1, 0):
        monkeypatch.setenv("RANK", str(process))
        found = sweep(config, varied, folds=2, keep=2)
        if process:
            assert not (Path("run") / "sweep.jsonl").exists()
            assert len(told(f"run/processes/{process}")) == 8
    (*ours, refit, final), (*theirs, whole_refit, whole_final) = told("run"), told("whole")
    assert sorted(ours, key=lambda line: line["member"]) == sorted(theirs, key=lambda line: line["member"])
    assert (refit, final) == (whole_refit, whole_final)
    assert found.table == whole.table
    assert not (Path("run") / "processes").exists()
    monkeypatch.setenv("RANK", "2")  # one that comes late
    assert sweep(config, varied, folds=2, keep=2).table == whole.table
    assert not (Path("run") / "processes").exists()


def test_halving_ends_all_but_the_best_early(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, rates = given(npz, num_devices=1, num_epochs=9), [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    halved = sweep(config, {"learning_rate": rates}, folds=2, halving=3, keep=2)
    by_steps: dict[int, set[float]] = {}
    for line in halved.members:
        by_steps.setdefault(line["steps"], set()).add(line["settings"]["learning_rate"])
    assert sorted((steps, len(settings)) for steps, settings in by_steps.items()) == [(3, 6), (9, 2), (27, 1)]
    whole = sweep(dataclasses.replace(config, workdir="whole"), {"learning_rate": rates}, folds=2, keep=0, refit=False)
    finished = {line["member"]: line["params_sha256"] for line in halved.members if line["steps"] == 27}
    assert finished.items() <= {line["member"]: line["params_sha256"] for line in whole.members}.items()
    at_three = {line["member"]: line["curve"][0][2] for line in whole.members}
    assert all(line["score"] == at_three[line["member"]] for line in halved.members if line["steps"] == 3)
    assert halved.best == {"learning_rate": next(iter(by_steps[27]))}
    monkeypatch.setattr(courses, "_STATES", 1 << 60)  # no state is held
    begun, again = list[int](), Course.begin_again
    monkeypatch.setattr(Course, "begin_again", lambda self: (begun.append(self.member.number), again(self)))
    sweep(dataclasses.replace(config, workdir="dropped"), {"learning_rate": rates}, folds=2, halving=3, keep=2)
    assert len(begun) >= 18 + 18 + 6  # once made, and after each stage
    lines = told("run")[:18]
    assert told("dropped")[:18] == lines
    for folder, lost in (("run", 2), ("dropped", 3)):  # lines at the end, the last member's at "dropped"
        path = Path(folder)
        write_lines(path / "sweep.jsonl", [line | {"seconds": 1.0} for line in told(folder)[:-lost]])
        (path / "rungs.jsonl").unlink()  # as another process's are once all is done, or damaged
        shutil.rmtree(path / "members")
        sweep(dataclasses.replace(config, workdir=folder), {"learning_rate": rates}, folds=2, halving=3, keep=2)
        assert told(folder)[:18] == lines
        assert (path / "rungs.jsonl").exists() == (folder == "dropped")
        for line in lines[-2:]:
            assert load(path / "members" / str(line["member"]), "newest").step == 27


def test_halving_goes_on_only_with_what_is_varied_in_the_same_order(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add, config = record.Record.add, given(npz, num_devices=1, num_epochs=9)

    def killed(*given: Any) -> None:
        add(*given)
        raise OSError("the power fails")

    varied = {"learning_rate": [0.003, 0.01], "momentum": [0.0, 0.5, 0.9]}
    with monkeypatch.context() as patched:
        patched.setattr(record.Record, "add", killed)
        with pytest.raises(OSError, match="the power fails"):
            sweep(config, varied, folds=2, halving=3, refit=False)
    assert not Path("run/sweep.jsonl").exists()
    with pytest.raises(InputError, match=r"another sweep \(member \d was .*: give the same flags in the same order"):
        sweep(config, dict(reversed(varied.items())), folds=2, halving=3, refit=False)


def test_halving_whose_last_one_diverges_has_the_best_of_those_before(
    npz: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Course.add

    def late(self: Course, losses: np.ndarray, *more: Any) -> None:
        add(self, np.where(np.arange(self.step, self.step + len(losses)) < 20, losses, np.nan), *more)

    monkeypatch.setattr(Course, "add", late)
    config = given(npz, num_devices=1, num_epochs=9)
    found = sweep(config, {"learning_rate": [0.001, 0.003, 0.01]}, folds=2, halving=3, keep=2, refit=False)
    halted = {line["settings"]["learning_rate"]: line.get("halted") for line in found.members}
    assert sorted(halted.values(), key=str) == [0, 0, None]
    assert halted[found.best["learning_rate"]] == 0
    assert [row["score"] is None for row in found.table] == [False, False, True]
    assert "all settings that went the full length diverged: the best is one that --hal" in capsys.readouterr().err
    assert swept.read(found.folder).final["kept"] == []  # type: ignore[index] # it is finished


def test_a_process_waits_for_another_one_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, ended = given("", stall_seconds=0.1), time.monotonic() + 0.5
    monkeypatch.setattr(courses, "_LOOK_SECONDS", 0.01)
    other, own = record.Record(tmp_path, 1, 0), record.Record(tmp_path, 0, 0)
    waiting: Any = SimpleNamespace(_processes=2, config=config, found=[vary.Member(7, {}, None, config)])

    def ready() -> bool:
        if time.monotonic() < ended:
            other.beat(time.monotonic_ns())
        return False

    with pytest.raises(ProcessEnded, match=r"no other process has gone on, with 1 member left, from member 7 on"):
        courses.Courses._wait_for(waiting, ready, own, Watchdog(0))
    assert time.monotonic() > ended
    waiting.found = []  # only lines of stages are missing
    with pytest.raises(ProcessEnded, match=r"no other process has gone on: start again"):
        courses.Courses._wait_for(waiting, lambda: False, own, Watchdog(0))
    told = courses.Courses._pulse_of(waiting, own)
    assert waiting._waits
    assert (told(3), len(own.pulses())) == (3, 1)
    waiting._waits = False
    assert (told(4), own.pulses()[0]) == (4, "4")


def test_while_all_is_read_for_the_scaling_the_watchdog_waits_and_it_is_read_once(
    npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, wait = list[int](), futures.wait
    monkeypatch.setattr(Watchdog, "beat", lambda self: beats.append(len(self._signs)))
    monkeypatch.setattr(courses, "wait", lambda work, timeout=0, **more: wait(work, timeout / 100 or None, **more))
    scaling, read = datasets.input_scaling, list[int]()

    def slowly(*given: Any) -> Any:
        before = len(beats)
        time.sleep(0.4)
        read.append(len(beats) - before)
        return scaling(*given)

    monkeypatch.setattr(shares, "input_scaling", slowly)
    monkeypatch.setattr("distmlp.training.input_scaling", slowly)
    config = given(npz, num_devices=1, num_epochs=1, data_placement="host")
    sweep(config, {"learning_rate": [0.01, 0.1]}, folds=2, keep=0, refit=False)
    assert len(read) == 2  # folds
    assert min(read) > 3
    assert set(beats) == {2}


def test_data_that_training_learns_from_or_that_are_not_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(90, 2)), columns=["a", "c"])
    frame["b"] = rng.choice(["red", "blue", "green"], 90)
    frame.loc[::7, "a"] = None
    frame["label"] = np.where(frame.c > 0, "yes", "no")
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = given(str(tmp_path / "t.csv"), num_devices=1, test_fraction=0.2, missing="mean", text_columns="one_hot",
                   choose_by="roc_auc")  # fmt: skip
    found = sweep(config, {"seed": [0, 1]}, folds=2, keep=1, refit=False)
    line = found.members[2]
    history = alone(config, line, 2).history
    assert line["params_sha256"] == history[-1]["params_sha256"]
    assert line["score"] == max(each["validation_roc_auc"] for each in history[:-1])
    from_host = dataclasses.replace(config, data_placement="host", workdir="host")
    sent = sweep(from_host, {"seed": [0]}, folds=2, keep=1, refit=False)
    assert [line["params_sha256"] for line in sent.members] == [line["params_sha256"] for line in found.members[:2]]


def test_pools_of_folds_are_counted_together_and_hold_their_examples_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(90, 2)), columns=["a", "b"])
    frame.loc[::7, "a"] = None
    frame["label"] = rng.choice(["yes", "no"], 90)
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = given(str(tmp_path / "t.csv"), test_fraction=0.2, missing="mean")
    folds = [dataclasses.replace(config, fold=f"{number}/3") for number in (1, 2, 3)]
    made = shares.Shares(datasets.load, 2 * 72 * 2 * 4)  # room for two pools of 72 examples
    found = [made.of(fold) for fold in folds]
    assert [share.pool is None for share in found] == [False, False, True]
    for share, fold in zip(found, folds, strict=True):
        data: Any = share.data()
        assert data.fingerprint() == datasets.load(fold).fingerprint()
        for part in (data.train, data.validation):
            held = share.pool is not None and np.shares_memory(part.resident[0], share.pool.images)
            assert held == (share.pool is not None)


@pytest.mark.parametrize(("width", "steps"), [(8, 500), (8192, 1)])
def test_a_dispatch_on_a_cpu_is_so_short_that_no_watchdog_takes_it_for_a_stall(width: int, steps: int) -> None:
    config = given("", hidden_sizes=(width,) * 3, batch_size=200, steps_per_dispatch=500, num_devices=1)
    pool = members.Pool(np.zeros((200_000, 4), np.uint8), np.zeros(200_000, np.int32))
    rows, held = np.split(np.arange(200_000), [199_000])
    share = shares.Share(pool, rows, held, None, lambda: pytest.fail("the data are not needed"))
    course = Course(vary.Member(0, {}, None, config), share, 1)
    made = team.Team([course], members.layout_of(config), 2, 1, {})
    assert made._shape.steps == steps
    longer = Course(vary.Member(1, {}, None, dataclasses.replace(config, num_epochs=100)), share, 1)
    turns = [team.Team(each, made._layout, 2, 1, {})._most_in_turn(1 << 40) for each in ([course, longer], [longer])]
    assert turns[0] == turns[1]


def test_the_orders_of_a_dispatch_have_a_bound() -> None:
    layout = members.layout_of(Config(num_devices=1))
    found = [members.largest_dispatch(Config(batch_size=size), layout) for size in (64, 100_000, 10_000_000)]
    assert found == [512, 5, 1]


def test_what_is_best_of_a_table_with_text_labels_is_so_on_the_test_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 2)), columns=["east", "north"])
    distance = np.hypot(frame.east, frame.north)
    frame["place"] = np.select([distance < 0.8, distance < 1.5], ["centre", "ring"], "outside")  # no lines part these
    frame.to_csv(tmp_path / "places.csv", index=False)
    config = Config(dataset=str(tmp_path / "places.csv"), label_column="place", test_fraction=0.25, num_devices=1,
                    input_scaling="standard", shuffle=True, hidden_sizes=(16,), batch_size=30, num_epochs=40,
                    optimizer="adam", workdir="run")  # fmt: skip
    found = sweep(config, {"learning_rate": [0.0001, 0.03], "weight_decay": [0.001, 10.0]}, folds=3, keep=0)
    assert found.refit is not None
    assert found.best == {"learning_rate": 0.03, "weight_decay": 0.001}
    assert found.refit["test_accuracy"] > 0.85
    assert found.refit["test_accuracy"] == pytest.approx(found.table[0]["score"], abs=0.1)
    *_, second, _ = train(dataclasses.replace(config, **found.table[1]["settings"], workdir=None)).history
    assert found.refit["test_accuracy"] > second["test_accuracy"] + 0.2
    assert found.table[1]["score"] == pytest.approx(second["test_accuracy"], abs=0.2)
    classes = load(found.folder).predict(np.array([[0.0, 0.1], [3.0, 3.0]])).classes
    assert classes.tolist() == ["centre", "outside"]


def test_a_member_that_diverges_is_the_worst_and_no_harm(npz: str) -> None:
    varied = {"learning_rate": [1e30, 0.01], "seed": [0, 1, 2, 3]}
    found = sweep(given(npz, num_devices=1, eval_every_epochs=0), varied, folds=2, keep=1, refit=False)
    ended = [(line["score"], line["params_sha256"], line["steps"]) for line in found.members[:8]]
    assert ended == [(None, None, 2)] * 8  # amid the only dispatch
    assert found.best == {"learning_rate": 0.01}
    assert found.table[1] == {"settings": {"learning_rate": 1e30}, "score": None, "error": None}


def test_a_member_that_diverges_is_so_wherever_its_examples_are(npz: str) -> None:
    config, found = given(npz, num_devices=1, steps_per_dispatch=1, num_epochs=3), []
    for placement in ("device", "host"):
        placed = dataclasses.replace(config, data_placement=placement, workdir=placement)
        lines = sweep(placed, {"learning_rate": [1e30, 0.01]}, folds=2, keep=0, refit=False).members
        found.append([(line["score"], line["steps"], line["params_sha256"], len(line["curve"])) for line in lines])
    assert found[0] == found[1]
    assert [each[0] is None for each in found[0]] == [True, True, False, False]


@pytest.mark.parametrize("choose_by", ["loss", "roc_auc"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_an_evaluation_that_finds_nan_is_no_score(npz: str, choose_by: str, placement: str) -> None:
    config = given(npz, num_devices=1, max_steps=1, choose_by=choose_by, data_placement=placement)
    varied = {"learning_rate": [1e30, 0.01]}  # the loss of the only step is that of before it
    found = sweep(config, varied, folds=2, keep=1, refit=placement == "device")
    assert [(line["score"], line.get("diverged")) for line in found.members[:2]] == [(None, True)] * 2
    assert [row["settings"]["learning_rate"] for row in found.table] == [0.01, 1e30]
    path, told_before = Path("run/sweep.jsonl"), told("run")
    lines = [line | {"score": np.nan} if line.get("diverged") else line for line in told_before]
    lines[-1] = lines[-1] | {"best": {"settings": {"learning_rate": 1e30}}, "kept": [0]}  # as it was once
    write_lines(path, [line | {"seconds": 1.0} for line in lines])
    for flags_of in Path("run/members").glob("refit/run.flags"):
        flags_of.write_text(flags_of.read_text().replace("--learning_rate=0.01", "--learning_rate=1e+30"))
    again = sweep(config, varied, folds=2, keep=1, refit=placement == "device")
    assert (again.best, again.table) == (found.best, found.table)
    assert told("run")[4:] == told_before[4:]


REFUSED = {
    "nothing to vary": {},
    "no such setting, did you mean learning_rate": {"vary": {"learning_rat": [1.0]}},
    "it does not decide the result": {"vary": {"num_devices": [1, 2]}},
    "all members must be scored alike": {"vary": {"choose_by": ["loss", "accuracy"]}},
    "give its values": {"vary": {"learning_rate": []}},
    "is given twice": {"vary": {"learning_rate": ["0.1", 0.1]}},
    "--vary batch_size 1.5: give whole numbers": {"vary": {"batch_size": ["1.5"]}},
    "--vary shuffle yes: give true or false": {"vary": {"shuffle": ["yes"]}},
    "--learning_rate=-1.0 must be above 0": {"vary": {"learning_rate": [-1]}},
    "--momentum goes with --optimizer=sgd": {"vary": {"momentum": [0.0, 0.9], "optimizer": ["sgd", "adam"]}},
    "say how often": {"vary": {"learning_rate": "log:0.1:1"}},
    "the smaller one first": {"vary": {"learning_rate": "log:0:1"}, "sample": 2},
    "a range stands alone": {"vary": {"learning_rate": ["log:0.1:1", 2]}, "sample": 2},
    "the grid has 2 settings: give": {"vary": {"shuffle": [True, False]}, "sample": 3},
    "--folds=1: give 2 or more": {"folds": 1},
    "folds='2': give a whole number": {"folds": "2"},
    "keep=None: give a whole number": {"folds": 2, "keep": None},
    "sample=2.0: give a whole number": {"folds": 2, "sample": 2.0},
    "vary is a list: give a dict": {"vary": ["learning_rate"], "folds": 2},
    "--vary 3: there is no such setting": {"vary": {3: [1]}},
    "--halving=1: give 2 or more": {"folds": 2, "halving": 1},
    "needs several settings": {"vary": {"seed": [1, 2]}, "folds": 2, "halving": 2},
    "first compared after steps 3 and 3: give --eval_every_steps=1": {
        "vary": {"learning_rate": [0.1, 0.2, 0.3]}, "folds": 2, "halving": 3},
    "of 30 steps are first compared after steps 30 and 30: give --eval_every_steps=4": {
        "vary": {"learning_rate": [0.1, 0.2, 0.3]}, "folds": 2, "halving": 3,
        "config": {"num_epochs": 10, "eval_every_epochs": 0}},
    "--halving=2 saves nothing where members of 2 steps": {
        "vary": {"learning_rate": [0.1, 0.2], "max_steps": [9, 2]}, "folds": 2, "halving": 2,
        "config": {"eval_every_steps": 1}},
    "--keep=-1": {"folds": 2, "keep": -1},
    "needs examples to score by": {"vary": {"seed": [1, 2]}},
    "both hold out examples": {"folds": 2, "config": {"validation_fraction": 0.2}},
    "--fold=1/2 is a single run's": {"folds": 2, "config": {"fold": "1/2"}},
    "--state=sharded is for one large model": {"folds": 2, "config": {"state": "sharded"}},
    "--ledger keeps": {"folds": 2, "config": {"ledger": True}},
    "--profile_steps looks": {"folds": 2, "config": {"profile_steps": "1:2"}},
    "--audit_every checks": {"folds": 2, "config": {"audit_every": 5}},
    "--checkpoint_every_steps saves": {"folds": 2, "config": {"checkpoint_every_steps": 5}},
    "--checkpoint_every_seconds saves": {"folds": 2, "config": {"checkpoint_every_seconds": 5.0}},
    "give at most 48, the training examples of a fold": {"vary": {"batch_size": [10, 60]}, "folds": 2},
    "--folds=1000: ": {"folds": 1000},
    "--warmup_steps=9 must be below the schedule's 6 steps": {
        "folds": 2, "config": {"schedule": "warmup_cosine", "warmup_steps": 9}},
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_nonsense_is_refused_before_anything_is_trained(npz: str, text: str) -> None:
    asked = dict(REFUSED[text])
    with pytest.raises(InputError) as raised:
        sweep(given(npz, **asked.pop("config", {})), **asked)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (Path("run") / "sweep.jsonl").exists()


def test_flags_may_have_one_dash_and_those_of_training_and_of_a_sweep_are_told_apart() -> None:
    """-hidden_sizes is not -h."""
    with pytest.raises(InputError, match=r"--samples is no flag.*: sweep --help lists its own, --helpfull training's"):
        sweep_verb.main(["-hidden_sizes=8", "-header", "none", "-samples=20"])


def test_a_command_line_becomes_members() -> None:
    line = "a.flags --vary hidden_sizes 64 256,256 --folds=3 --vary data_seed -1 2 --seed 7"
    found, rest = vary.from_flags(line.split())
    assert found == {"hidden_sizes": ["64", "256,256"], "data_seed": ["-1", "2"]}
    assert rest == ["a.flags", "--folds=3", "--seed", "7"]
    for wrong in (["--vary"], ["--vary", "seed"], ["--vary", "seed", "--folds=2"], ["--vary=seed", "1"],
                  ["--vary", "seed", "1", "b.flags"], ["--vary", "seed", "1", "--vary", "seed", "2"]):  # fmt: skip
        with pytest.raises(InputError, match="--vary"):
            vary.from_flags(wrong)
    asked = vary.varied({"hidden_sizes": ["64", "256,256"], "seed": ["0", "1"], "shuffle": ["true", "false"]})
    made = vary.members(Config(seed=5), asked, folds=2, sample=0)
    assert len(made) == 16
    assert made[-1].settings == {"hidden_sizes": [256, 256], "shuffle": False, "seed": 1}
    assert (made[-1].config.fold, made[-1].config.data_seed, made[-1].config.seed) == ("2/2", 5, 1)
    asked = vary.varied({"learning_rate": "log:1e-4:1e-1", "batch_size": "uniform:16:64"})
    drawn = vary.members(Config(), asked, 0, 50)
    rates = np.array([member.config.learning_rate for member in drawn])
    assert 10 < (rates < 10**-2.5).sum() < 40
    assert (rates.min() > 1e-4, rates.max() < 1e-1) == (True, True)
    assert {type(member.config.batch_size) for member in drawn} == {int}
    few = {"batch_size": vary.varied({"batch_size": "log:16:64"})["batch_size"]}
    sizes = [member.config.batch_size for member in vary.members(Config(), few, 0, 49)]
    assert sorted(sizes) == list(range(16, 65))
    assert sizes[:5] == [member.config.batch_size for member in vary.members(Config(), few, 0, 5)]
    with pytest.raises(InputError, match=r"^--sample=50: the ranges have 49 settings: give fewer, or wider ranges$"):
        vary.members(Config(), few, 0, 50)
