"""The documentation is true: what README and docs/ show is run, or taken apart as far as it can be without hardware."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
import pytest
import torch.distributed.run
from conftest import REPOSITORY
from sklearn.datasets import load_wine

from distmlp import Config
from distmlp.data import datasets
from launch import flags
from launch.cli import VERBS

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
# Their blocks run as notebooks'. Numbers of the second one are of a whole training: another processor's differ a bit.
LESSONS = {DOCS / "from_one_device_to_eight.md": 0.0, DOCS / "from_a_table_to_a_model.md": 0.1}
ELSEWHERE = {"torchrun", "mpirun", "sbatch", "kubectl", "docker", "ruff", "mypy", "lint-imports", "mkdocs"}
_FENCE = re.compile(r"(?:<!-- needs: ([^\n]*) -->\n)?```(\w+)\n(.*?)```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page; `needs` is what a machine that runs it must have, beyond this one."""

    needs: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(page.read_text())]


def commands(block: Block) -> Iterator[list[str]]:
    """The command lines of a block, split as a shell does."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def named(page: Path) -> str:
    return page.name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page's reader: one table lies there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    load_wine(as_frame=True).frame.to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if page not in LESSONS], ids=named)
def test_the_blocks_of_a_page_run_in_their_order(page: Path, folder: Path) -> None:
    x, y = datasets.load(Config()).test.take(np.arange(50))
    names: dict[str, Any] = {"x": x, "y": y}
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block.text, page.name, "exec"), names)
            printed = output.getvalue()
            if "probabilities" in names:  # of a program without distmlp
                np.testing.assert_allclose(names["probabilities"], names["predictions"].probabilities, atol=1e-6)
        elif block.language == "bash":
            printed = ""
            for words in commands(block):
                *words, target = [word for word in words if word != ">"] if ">" in words else [*words, os.devnull]
                check(words)
                if not block.needs:
                    with Path(target).open("w") as file, contextlib.redirect_stdout(file):
                        run(words)
        elif printed:
            assert printed.endswith(block.text), f"{page.name} shows another output"
            printed = ""
        else:
            assert block.language == "text"


def run(words: list[str]) -> None:
    """Runs a command of distmlp's as its user would, on one device, by default for two epochs; installs nothing."""
    verb = verb_of(words)
    if verb is None:
        assert words[:3] == ["pip", "install", "-e"], f"{words}: can be run, or say what it needs"
        return
    main = importlib.import_module(f"launch.{verb[0]}").main
    if verb[0] in ("train", "plan", "sweep"):
        verb += ["--num_devices=1"] if "--num_epochs" in " ".join(verb) else ["--num_devices=1", "--num_epochs=2"]
    assert not main(verb if verb[0] == "train" else verb[1:]), words  # an exit code, or none


def verb_of(words: list[str]) -> list[str] | None:
    """VERB and its arguments, of `distmlp VERB ...` or `python -m launch.VERB ...`."""
    if words[0] == "distmlp":
        return words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("launch."):
        return [words[2].removeprefix("launch."), *words[3:]]
    return None


def check(words: list[str]) -> None:
    """What a command names is there, and its flags are right."""
    if (verb := verb_of(words)) is not None:
        assert verb[0] in VERBS, words
        if verb[0] in ("train", "plan") and verb[1:]:
            others = ("--target=", "--figure=", "--json", "--members=")
            check_flags([word for word in verb[1:] if not word.startswith(others)])
        return
    program, *rest = words
    if program == "pip":
        known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extra in re.findall(r"\[(\w+)\]", " ".join(rest)):
            assert extra in known, words
    elif words[:2] == ["python", "-m"] and words[2].startswith("tests."):
        assert (REPOSITORY / words[2].replace(".", "/")).with_suffix(".py").exists(), words
    elif program == "python":
        paths = [word for word in rest if "/" in word]
        assert paths, words
        assert all((REPOSITORY / path).exists() for path in paths), words
    elif program == "torchrun":
        given = torch.distributed.run.parse_args(rest)
        assert given.module, words
        check(["python", "-m", given.training_script, *given.training_script_args])
    elif program == "mpirun":
        check(words[words.index("python") :])
    elif program == "sbatch":
        subprocess.run(["bash", "-n", REPOSITORY / rest[0]], check=True)
        check_flags(rest[1:])
    elif program == "kubectl":
        assert (REPOSITORY / words[-1]).exists(), words
    else:
        assert program in ELSEWHERE, words


def check_flags(given: list[str]) -> None:
    flags.parse(["train", *given]).validate()


SPANS = re.compile(r"`([^`\n]+)`")


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^    .*$", "", _FENCE.sub("", page.read_text()), flags=re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=named)
def test_what_the_text_names_is_there(page: Path) -> None:
    known = {f"--{field.name}" for field in dataclasses.fields(Config)}
    known |= {"--help", "--helpfull", "--target", "--figure", "--json", "--checkpoint", "--split", "--format",
              "--output", "--dataset", "--columns", "--probabilities", "--partitions", "--max-restarts", "--minutes",
              "--vary", "--folds", "--sample", "--halving", "--keep", "--members", "--ensemble",
              "--signal"}  # of other verbs, and of launchers  # fmt: skip
    folders = [REPOSITORY, *(REPOSITORY / name for name in ("distmlp", "docs", "benchmarks", "configs"))]
    for span in SPANS.findall(prose(page)):
        if span.startswith("--"):
            assert re.sub("^--no", "--", span.partition("=")[0].split()[0]) in known | {
                "--counts", "--nnodes", "--plan"}, span  # fmt: skip
        elif re.fullmatch(r"[\w/]+\.(py|md|flags|ipynb|yaml|sbatch)", span) and span not in ("run.flags", "utils.py"):
            assert any((folder / span).exists() for folder in folders) or list(REPOSITORY.glob(f"*/*/{span}")), span
        elif span.startswith(("python ", "distmlp ")) and "VERB" not in span:
            check([word for word in shlex.split(span) if not re.fullmatch(r"RUN(\.\.\.)?|FILE(\.\.\.)?|[AB]", word)])


def program(path: str) -> Any:
    """A program of this repository, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_are_those_that_were_measured(page: Path) -> None:
    documented = program("benchmarks/documented.py")
    measured = json.loads(documented.RESULTS.read_text())
    assert documented.tables(page.read_text(), measured) == page.read_text(), "run python benchmarks/documented.py"


@pytest.mark.parametrize("page", [*PAGES, *map(REPOSITORY.joinpath, ("CONTRIBUTING.md", "SECURITY.md"))], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


def syllables(word: str) -> int:
    """Groups of vowels, without a silent e at the end."""
    count = len(re.findall(r"[aeiouy]+", word))
    silent = re.search(r"[^aeiouyl]e$|[^aeiouytd]ed$|[^aeiouyscxz]es$", word)
    return max(1, count - bool(silent))


def reading_ease(text: str) -> float:
    """Flesch's: 100 for the simplest texts, 60 to 70 for plain English, below 50 for difficult ones."""
    sentences = [sentence for sentence in re.split(r"[.!?](?=\s|$)|\n\n|\n(?=- |\d\. )", text)
                 if re.search("[a-zA-Z]", sentence)]
    words = re.findall(r"[a-zA-Z']+", text)
    spoken = sum(syllables(word.lower()) for word in words)
    return 206.835 - 1.015 * len(words) / len(sentences) - 84.6 * spoken / len(words)


def test_the_measure_of_reading_ease() -> None:
    assert reading_ease("The cat sat on the mat.") > 110
    assert reading_ease("Heterogeneous computational infrastructures necessitate sophisticated synchronization.") < 0


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_prose_is_easy_to_read(page: Path) -> None:
    text = re.sub(r"<!--.*?-->|^#.*|^\|.*|^:::.*|!\[.*?\]\(.*?\)", "", prose(page), flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    assert reading_ease(text) >= 50


def test_the_session_in_the_readme_is_what_is_printed_today() -> None:
    from distmlp.run.log import HEADER

    session = next(block.text for block in blocks(README) if block.text.startswith("versions"))
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"distmlp {version}," in session
    assert f"\n{HEADER}\n" in session
    assert "parameters 6655d52bfb352f680d276b46f854c7cfc664dfbb434e4e9f64c1a9351fb17ec8" in session
    assert max(len(line) for line in session.splitlines() if "/runs/" not in line) <= 80


def test_the_page_names_everything_in_a_runs_folder(wine_run: Path) -> None:
    table = re.findall(r"^\| `([\w.-]+)[^|]*\|", (DOCS / "results.md").read_text(), re.MULTILINE)
    found = {path.name for path in wine_run.iterdir()} - {"lock"}
    assert found >= {"metrics.jsonl", "checkpoints", "ledger.jsonl"}
    assert found <= set(table)


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def alike(text: str, other: str, tolerance: float) -> bool:
    """Whether the words are the same, and the numbers: each by this share of itself, or by as many units."""
    pairs = zip(_NUMBER.findall(text), _NUMBER.findall(other), strict=False)
    numbers = [[float(number.replace(",", "")) for number in pair] for pair in pairs]
    same_words = _NUMBER.sub("N", text).split() == _NUMBER.sub("N", other).split()
    return same_words and all(abs(a - b) <= tolerance * max(a, 10) for a, b in numbers)


def test_what_is_alike() -> None:
    assert alike("97 of 114: 85.1 %\n", "97 of 114:  85.1 %", 0)
    assert not alike("97 of 114", "98 of 114", 0)
    assert alike("97 of 114", "99 of 114", 0.1)
    assert not alike("97 of 114", "80 of 114", 0.1)
    assert not alike("97 right", "97 wrong", 0.1)


@pytest.mark.parametrize("page", LESSONS, ids=named)
def test_the_notebook_is_that_of_its_page_and_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, text = program("docs/notebook.py"), page.read_text()
    book, pictures = module.notebook(text), module.pictures(text)
    committed = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    for mine, theirs in zip(book.cells, committed.cells, strict=True):
        assert mine.source == theirs.source, "write it again: python docs/notebook.py"
        assert mine.cell_type == "markdown" or module.printed(theirs) or "print(" not in mine.source
    for cell, picture in zip(module.code(committed), pictures, strict=True):
        assert module.drawn(cell) == ((DOCS / picture).read_bytes() if picture else b""), picture
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    outputs = iter(module.execute(book, folder))
    assert [bool(module.drawn(cell)) for cell in module.code(book)] == [bool(picture) for picture in pictures]
    output = ""
    for block in blocks(page):
        if block.language == "python":
            output = next(outputs)
        else:
            last = "\n".join(output.splitlines()[-block.text.count("\n") :])
            assert alike(block.text, last, LESSONS[page]), output


def test_the_page_of_the_code_has_counted_it() -> None:
    house = program("docs/house.py")
    page = house.PAGE.read_text()
    assert alike(page, house.written(page), 0.1), "python docs/house.py"
    assert house.PICTURE.read_text() == house.picture(), "python docs/house.py"
    assert set(house.FIRST | house.THEN) <= set(re.findall(r"`([\w/]+\.py)`", page))


def test_each_picture_is_made_by_a_program_and_shown_on_a_page() -> None:
    pictures, book, house = (program(f"docs/{name}.py") for name in ("pictures", "notebook", "house"))
    drawn = {name for page in LESSONS for name in book.pictures(page.read_text()) if name}
    made = {Path(name).name for name in drawn} | set(pictures.PICTURES) | {house.PICTURE.name}
    assert {path.name for path in pictures.IMAGES.iterdir()} == made
    shown = {Path(link).name for page in PAGES for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())}
    assert shown == made
    for name, make in pictures.PICTURES.items():
        if name.endswith(".svg"):  # a photograph takes a browser
            assert (pictures.IMAGES / name).read_bytes() == make(), f"python docs/pictures.py {Path(name).stem}"


def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for path in pages:
        fetched = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="([^"]+)"', path.read_text())
        assert fetched
        assert [link for link in fetched if "//" in link] == [], path
        assert "```" not in path.read_text(), f"{path}: a block that is not shown as one"
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text())
    reference = (tmp_path / "site" / "reference.html").read_text()
    for shown in ("train_set", "checkpoint_every_seconds", "init_network_params", "DivergedError"):
        assert shown in reference, shown
