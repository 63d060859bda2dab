"""Parquet parts of any size packed, trained on and predicted: python -m tests.drills.packed --folder=/tmp

Makes --gigabytes of them (10 is the real one), and packs them, killed once on the way. Trains on the pack for one epoch
on 8 emulated devices and in two processes, and once more on a part that fits in memory: there, killed and resumed, to
the same SHA-256 as from the Parquet parts themselves. Predicts all rows, in one process and in two under torchrun, and
joins them by their id; evaluates on the pack and on the parts. Flips a bit in a part, which training must name. Prints
rows a second and the peak of the memory of each step.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import dataset, parquet

from distmlp import Config
from distmlp.data import datasets

from . import groups, runs

WIDTH, CLASSES, ROWS_OF_A_PART = 50, 5, 1_000_000
MOST = 1 << 30  # bytes that packing and predicting may take
TRAIN = ("--shuffle", "--input_scaling=standard", "--hidden_sizes=64", "--batch_size=4096", "--reduction=invariant",
         "--num_epochs=1", "--checkpoint_every_seconds=5")  # fmt: skip
PACK = ("--ignore_columns=id", "--test_fraction=0.05")


def make(folder: Path, rows: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    projections = rng.standard_normal((WIDTH, CLASSES), dtype=np.float32)
    for part, begin in enumerate(range(0, rows, ROWS_OF_A_PART)):
        count = min(ROWS_OF_A_PART, rows - begin)
        x = rng.standard_normal((count, WIDTH), dtype=np.float32)
        columns: dict[str, np.ndarray] = {f"x{place}": x[:, place] for place in range(WIDTH)}
        columns |= {"id": np.arange(begin, begin + count), "label": (x @ projections).argmax(axis=1)}
        parquet.write_table(pa.table(columns), folder / f"part-{part:05}.parquet", row_group_size=200_000)


class Step:
    """A command, its time, and the peak of the memory of each of its processes that is no file's."""

    def __init__(self, command: Sequence[str], devices: int = 1) -> None:
        self.peak, self._started = 0, time.monotonic()
        self.popen = subprocess.Popen([sys.executable, "-m", *command], env=runs.environment(devices), text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()

    def _sample(self) -> None:
        while self.popen.poll() is None:
            with contextlib.suppress(OSError, TypeError):  # it has just ended
                found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{self.popen.pid}/status").read_text())
                self.peak = max(self.peak, 1024 * int(found[1]))  # type: ignore[index]
            time.sleep(0.02)

    def end(self, code: int = 0) -> tuple[str, float]:
        """What it said, and the seconds that it took."""
        output = self.popen.communicate()[0]
        self._watch.join()
        if self.popen.returncode != code:
            raise runs.DrillError(f"exit code {self.popen.returncode}, not {code}:\n{output[-4000:]}")
        return output, time.monotonic() - self._started


@contextlib.contextmanager
def told(what: str, rows: int) -> Iterator[list[Step]]:
    steps: list[Step] = []
    started = time.monotonic()
    yield steps
    seconds = time.monotonic() - started
    peak = max((step.peak for step in steps), default=0)
    print(f"{what}: {seconds:.1f} s, {rows / seconds:,.0f} rows/s, peak {peak / 1e6:,.0f} MB", flush=True)
    if peak > MOST and not what.startswith("train"):
        raise runs.DrillError(f"{what} took {peak / 1e6:,.0f} MB")


def pack_killed(source: Path, output: Path, rows: int) -> None:
    """Packs, killed once when some rows have been noted as written."""
    command = ("launch.pack", str(source), f"--output={output}", *PACK)
    note = output.with_name(f"{output.name}.unfinished") / "unfinished.json"
    first = Step(command)
    while first.popen.poll() is None and not (note.exists() and '"read"' in note.read_text()):
        time.sleep(0.2)
    first.popen.kill()
    first.end(first.popen.wait())
    if output.exists():
        print("  (packed before it could be killed)")
        return
    if not note.exists():
        raise runs.DrillError("nothing to go on from")
    with told("pack, gone on with after kill -9", rows) as steps:
        steps.append(Step(command))
        steps[0].end()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where there is room for twice the data")
    parser.add_argument("--gigabytes", type=float, default=10, help="of Parquet parts")
    args = parser.parse_args(argv)
    rows = int(args.gigabytes * 1e9 / (4 * WIDTH)) // 1000 * 1000
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source, made = folder / "parts", folder / "made"
        with told("made", rows):
            make(source, rows)
        with told("pack", rows) as steps:
            steps.append(Step(("launch.pack", str(source), f"--output={made}", *PACK)))
            print("  " + steps[0].end()[0].strip())
        pack_killed(source, folder / "again", rows)
        for file in sorted(made.iterdir()):
            with file.open("rb") as one, (folder / "again" / file.name).open("rb") as other:
                while block := one.read(1 << 24):
                    if block != other.read(1 << 24):
                        raise runs.DrillError(f"{file.name} differs after kill -9")
        _check(made, rows)
        train = ("launch.train", f"--dataset={made}", *TRAIN)
        with told("train on 8 devices", rows) as steps:
            steps.append(Step((*train, f"--workdir={folder / 'eight'}"), devices=8))
            steps[0].end()
        with told("train in two processes", rows):
            group = groups.under_torchrun(folder / "two", [f"--dataset={made}", *TRAIN, "--data_placement=host"], 2)
            if group.wait(3600):
                raise runs.DrillError(group.output[-4000:])
        if runs.sha256(folder / "eight") != runs.sha256(folder / "two"):
            raise runs.DrillError("two processes came to other parameters than 8 devices")
        _small(folder, source)
        _predict(folder, source, rows)
        _evaluate(folder / "eight", made, source, rows)
        _damage(made / "x_train.npy", (*train, f"--workdir={folder / 'damaged'}"))
    print("packed drill: all held")
    return 0


def _check(made: Path, rows: int) -> None:
    with told("pack --check", rows) as steps:
        steps.append(Step(("launch.pack", f"--check={made}")))
        steps[0].end()
    data, started = datasets.load(Config(dataset=str(made))), time.perf_counter()
    data.fingerprint()
    print(f"  fingerprint: {1e3 * (time.perf_counter() - started):.2f} ms")


def _predict(folder: Path, source: Path, rows: int) -> None:
    """All rows, by one process and by two, joined by their ids."""
    output = folder / "predicted.parquet"
    command = ("launch.predict", str(folder / "eight"), str(source), f"--output={output}", "--columns=id")
    with told("predict", rows) as steps:
        steps.append(Step(command))
        steps[0].end()
    _joined([output], rows)
    with told("predict in two processes", rows):
        group = groups.torchrun(("-m", *command), folder, processes=2)
        if group.wait(3600):
            raise runs.DrillError(group.output[-4000:])
    _joined([folder / f"{output.name}.{process}-of-2" for process in range(2)], rows)


def _evaluate(run: Path, made: Path, source: Path, rows: int) -> None:
    """On the training part of the pack, and on all rows of the Parquet parts."""
    said = {}
    for what, options in (("pack", (f"--dataset={made}", "--split=train")), ("parts", (f"--dataset={source}",))):
        with told(f"evaluate on the {what}", rows) as steps:
            steps.append(Step(("launch.evaluate", str(run), "--json", *options)))
            said[what] = json.loads(steps[0].end()[0].splitlines()[-1])
    held_out = rows - said["pack"]["count"]
    if said["parts"]["count"] != rows or not 0 <= said["parts"]["correct"] - said["pack"]["correct"] <= held_out:
        raise runs.DrillError(f"the evaluations do not agree: {said}")


def _joined(outputs: Sequence[Path], rows: int) -> None:
    """Each row has its prediction, by its id."""
    found = 0
    for batch in dataset.dataset([*map(str, outputs)], format="parquet").to_batches(columns=["id"]):
        ids = batch["id"].to_numpy()
        if not (ids == np.arange(found, found + len(ids))).all():
            raise runs.DrillError("rows are missing, or twice, or in another order")
        found += len(ids)
    if found != rows:
        raise runs.DrillError(f"{found:,} predictions of {rows:,} rows")


def _damage(path: Path, train: Sequence[str]) -> None:
    """A bit that is flipped is named by training."""
    content = np.memmap(path, np.uint8, "r+")
    content[-4321] ^= 16
    content.flush()
    said = Step(train).end(2)[0]
    if "damaged" not in said or path.name not in said:
        raise runs.DrillError(f"the damage was not named: {said[-500:]}")
    print("  " + said.strip().splitlines()[-1])


def _small(folder: Path, source: Path) -> None:
    """A part that fits in memory: the same parameters from its pack, killed and resumed, as from the table itself."""
    table, made = folder / "small.parquet", folder / "small"
    parquet.write_table(parquet.read_table(source / "part-00000.parquet").slice(0, 400_000), table)
    Step(("launch.pack", str(table), f"--output={made}", *PACK)).end()
    flags = [flag for flag in TRAIN if not flag.startswith(("--checkpoint", "--batch"))]
    flags += ["--batch_size=256", "--checkpoint_every_steps=100"]
    whole = runs.finish(folder / "whole", [f"--dataset={table}", *PACK, *flags])
    killed = Step(("launch.train", f"--dataset={made}", *flags, f"--workdir={folder / 'killed'}",
                   "--data_placement=host"), 3)  # fmt: skip
    while killed.popen.poll() is None and not [*(folder / "killed" / "checkpoints").glob("[0-9]*00")]:
        time.sleep(0.1)
    killed.popen.kill()
    killed.end(killed.popen.wait())
    resumed = runs.finish(folder / "killed", [f"--dataset={made}", *flags], devices=2)
    if whole != resumed:
        raise runs.DrillError(f"from the pack, killed and resumed: {resumed}, from the table in memory: {whole}")
    print(f"  400,000 rows, from the table and from the pack, killed and resumed: {whole[:16]}...")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
