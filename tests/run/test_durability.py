"""A power cut takes no checkpoint that is listed, no line that was logged: the drill, and that it would notice."""

import re
import shutil
from pathlib import Path

import pytest
from drills import durability, runs

# Descriptors whose syncs are taken out of the trace, and what the drill says then.
FORGOTTEN = {
    r"/meta/metadata>": r"not synced before .*/checkpoints/\d+ went: .*/checkpoints/\d+/meta/metadata",
    r"/checkpoints/\d+>": r"not synced before .*/checkpoints/\d+ went: .*/checkpoints/\d+/_CHECKPOINT_METADATA",
    r"/run/checkpoints>": r"not synced before .*/checkpoints/\d+ went: .*/checkpoints/\d+$",
    r"/metrics.jsonl>": r"not synced before its next line: .*/metrics.jsonl$",
    r"/metrics.jsonl.tmp>": r"not synced before it became .*/metrics.jsonl: ",
    r"/run.flags.tmp>": r"not synced before it became .*/run.flags: ",
    r"/run>": r"not synced before its next line: .*/run/metrics.jsonl$",
}


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_what_is_listed_and_logged_is_on_disk_before_anything_older_goes(tmp_path: Path) -> None:
    trace = durability.traced_run(tmp_path)
    seen = durability.verdict(trace, tmp_path / "run")
    assert seen["checkpoints kept while another went"] >= 3
    assert seen["lines of metrics.jsonl"] == 6
    for path, words in FORGOTTEN.items():
        without = [line.replace("fsync(", "other(") if re.search(path, line) else line for line in trace]
        with pytest.raises(runs.DrillError, match=words):
            durability.verdict(without, tmp_path / "run")
