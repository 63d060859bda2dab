"""The command line: flags generated from Config, flagfiles, run.flags."""

import dataclasses
import os
import re
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPOSITORY

from distmlp import Config, InputError
from distmlp.config import run_flags
from distmlp.run.workdir import replace_file
from launch import flags, help
from launch.flags import parse
from launch.help import HelpRequested


def test_what_is_not_given_has_its_default() -> None:
    assert parse(["train", "--dataset=mnist"]) == Config(dataset="mnist")


def test_without_any_flag_two_commands_to_start_with() -> None:
    with pytest.raises(InputError, match=r"configs/digits\.flags.*--help"):
        parse(["train"])


def test_values_of_every_type() -> None:
    config = parse(["train", "--batch_size=64", "--learning_rate", "0.5", "--shuffle", "--hidden_sizes= 8, 4",
                    "--dataset=some/file.npz", "--noeval_train"])  # fmt: skip
    assert config == Config(
        batch_size=64, learning_rate=0.5, shuffle=True, hidden_sizes=(8, 4), dataset="some/file.npz"
    )
    assert parse(["train", "--hidden_sizes="]).hidden_sizes == ()


def test_later_flags_win_over_a_flagfile_and_comments_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.flags").write_text("# a comment\n--batch_size=7\n\n--seed=3\n")
    config = parse(["train", "--flagfile=a.flags", "--batch_size=9"])
    assert (config.batch_size, config.seed) == (9, 3)


@pytest.mark.parametrize("arguments", [["a.flags", "--batch_size=9"], ["--seed", "1", "a.flags", "--batch_size=9"],
                                       ["--batch_size=1", "a.flags", "b.flags"]], ids=str)  # fmt: skip
def test_a_config_needs_no_flagfile_before_it(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.flags").write_text("--batch_size=7\n--seed=3\n")
    (tmp_path / "b.flags").write_text("--batch_size=9\n")
    assert parse(["train", *arguments]) == Config(batch_size=9, seed=3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["# a comment", "--seed=3", "digits.flags"])
def test_a_config_as_windows_writes_it(tmp_path: Path, encoding: str, first: str) -> None:
    (tmp_path / "a.flags").write_bytes(f"{first}\r\n--batch_size=7\r\n--data_dir=Käfer\r\n".encode(encoding))
    config = parse(["train", "a.flags"])
    assert (config.batch_size, config.data_dir) == (7, "Käfer")
    assert (config.seed, config.num_epochs) == (3 if "seed" in first else 0, 20 if "digits" in first else 8)


@pytest.mark.parametrize("line", ["b.flags", "--flagfile=b.flags", "--flagfile\nb.flags", "-flagfile=b.flags"])
@pytest.mark.parametrize("folder", ["", "inner"])
def test_a_config_in_a_config_is_found_beside_it(tmp_path: Path, line: str, folder: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / folder / "a.flags").write_text(f"--batch_size=7\n{line}\n--seed=3\n")
    (tmp_path / "b.flags").write_text("--batch_size=1\n--seed=1\n--num_epochs=1\n")
    (tmp_path / folder / "b.flags").write_text("--batch_size=9\n--seed=1\n--num_epochs=2\n")
    assert parse(["train", f"{folder or '.'}/a.flags"]) == Config(batch_size=9, seed=3, num_epochs=2)


@pytest.mark.parametrize("line", ["digits.flags", "--flagfile=digits.flags", "--flagfile=configs/digits.flags"])
def test_a_config_in_a_config_is_found_as_on_the_command_line(tmp_path: Path, line: str) -> None:
    expected = dataclasses.replace(parse(["train", "digits.flags"]), seed=3)
    (tmp_path / "inner").mkdir()
    for path in ("a.flags", "inner/a.flags", "inner/digits.flags"):  # the last adds to the one of its name
        (tmp_path / path).write_text(f"{line}\n--seed=3\n")
        assert parse(["train", f"--flagfile={path}"]) == expected
    (tmp_path / "inner" / "digits.flags").unlink()
    (tmp_path / "digits.flags").write_text("--batch_size=5\n")  # in the current folder
    if "configs" not in line:
        assert parse(["train", "inner/a.flags"]) == Config(batch_size=5, seed=3)


def test_what_follows_a_flag_that_takes_a_value_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "a.flags").write_text("--batch_size=7\n--workdir\na.flags\n")
    assert parse(["train", "--workdir", "b.flags", "a.flags"]) == Config(batch_size=7, workdir="a.flags")
    assert parse(["train", "a.flags", "--workdir", "a.flags", "--shuffle", "a.flags"]).shuffle


def test_configs_that_cannot_be_read_in_a_config_are_named_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.flags").write_text("absent.flags\n")
    with pytest.raises(InputError, match=r"^--flagfile=absent\.flags, in a\.flags, cannot be read \(\[Errno 2\] .*\)"):
        parse(["train", "a.flags"])
    (tmp_path / "b.flags").write_text("c.flags\n")
    (tmp_path / "c.flags").write_text("--seed=1\nb.flags\n")
    for argument in ("b.flags", "./c.flags", "--flagfile=b.flags"):
        with pytest.raises(InputError, match=r"[bc]\.flags names [bc]\.flags, which is being read, perhaps"):
            parse(["train", argument])
    (tmp_path / "d.flags").write_text("e.flags\ne.flags\n")  # twice is no circle
    (tmp_path / "e.flags").write_text("--seed=4\n")
    assert parse(["train", "d.flags"]) == Config(seed=4)


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "--helpshort", "-h", "-help"])
def test_help_by_topic_in_80_columns(flag: str) -> None:
    with pytest.raises(HelpRequested) as caught:
        help.check(["train", "--batch_size=0", flag])
    text = str(caught.value)
    assert max(map(len, text.splitlines())) <= 80
    listed = [name for field in dataclasses.fields(Config) for name in re.findall(rf"]?\b({field.name})\b", text)]
    for field in dataclasses.fields(Config):
        shown = f"  --[no]{field.name}{'=true' * field.default} " if field.type is bool else f"  --{field.name}="
        assert (shown in text) == (flag == "--helpfull" or not field.metadata["rare"])
        assert not field.metadata["topic"] or f"\n{field.metadata['topic']}:\n" in text
    assert re.findall(r"^\S.*:$", text, re.MULTILINE) == [
        "Data:", "Model:", "Training:", "Devices:", "The run's folder:", "Several processes:",
    ]  # fmt: skip
    assert listed.index("dataset") < listed.index("seed") < listed.index("workdir")
    assert "--optimizer=sgd|adam|adamw" in text
    assert "--batch_size=128 " in text
    assert ("--[no]verify_data=true " in text) == (flag == "--helpfull")  # on unless it is said otherwise


def test_version() -> None:
    with pytest.raises(HelpRequested, match=re.escape(metadata.version("distmlp"))):
        help.check(["train", "--version"])


def test_run_flags_repeat_the_run_without_its_workdir(tmp_path: Path) -> None:
    config = Config(hidden_sizes=(8, 4), shuffle=True, learning_rate=0.1 + 0.2, workdir="w", data_dir="a b")
    (tmp_path / "run.flags").write_text(run_flags(config))
    assert parse(["train", "--flagfile=run.flags"]) == dataclasses.replace(config, workdir="")


@pytest.mark.parametrize("name", ["class ", "a\nb", "a\r\nb", '"', '"a"', "\ufeffa", os.fsdecode(b"K\xe4fer ")])
def test_run_flags_repeat_names_of_any_letters(name: str) -> None:
    config = Config(label_column=name, dataset=os.fsdecode(b"K\xe4fer.csv"))
    replace_file(Path("run.flags").absolute(), run_flags(config))
    assert parse(["train", "run.flags"]) == config


def test_blanks_behind_a_line_of_a_config_are_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.flags").write_bytes(b" # K\xe4fer\ndigits.flags \n--optimizer=adam \r\n--dataset=mnist\t\n")
    config = parse(["train", "a.flags"])
    assert (config.num_epochs, config.optimizer, config.dataset) == (20, "adam", "mnist")


@pytest.mark.parametrize("name", ["exp/configs/tabular.flags", "../configs/8gpu.flags", "/digits.flags"])
def test_a_config_elsewhere_that_does_not_exist_is_none_that_comes_along(name: str) -> None:
    with pytest.raises(InputError, match=f"^--flagfile={name} cannot be read"):
        parse(["train", name])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.flags")), ids=lambda path: path.stem)
def test_configs_are_valid_and_commented(path: Path) -> None:
    parse(["train", f"--flagfile={path}"]).validate()
    assert path.read_text().startswith("# ")


def test_tutorial_flags_leave_the_experiment_at_its_defaults() -> None:
    config = parse(["train", f"--flagfile={REPOSITORY}/configs/tutorial.flags"])
    assert config == Config(dataset="mnist", eval_train=True)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--nonsense=1", "--nonsense"),
        ("--batch_siz=1", "--batch_size"),
        ("stray", "unexpected argument 'stray'"),
        ("absent.flags", "--flagfile=absent.flags cannot be read"),
        ("--batch_size=x", "--batch_size=x: give a whole number"),
        ("--learning_rate=fast", "--learning_rate=fast: give a number"),
        ("--shuffle=maybe", "--shuffle=maybe: give true or false"),
        ("--optimizer=lion", "--optimizer=lion: choose one of sgd, adam, adamw"),
        ("--hidden_sizes=8,x", "--hidden_sizes=8,x: give whole numbers"),
        ("--batch_size", "--batch_size"),
        ("--noshuffle=1", "--noshuffle=1"),
        ("--flagfile=absent.flags", "--flagfile=absent.flags"),
        ("--flagfile=.", "--flagfile=."),
        ("--flagfile=binary.flags", "--flagfile=binary.flags"),
    ],
)
def test_bad_command_lines(
    argument: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary.flags").write_bytes(b"\x80\x81\xff\n--seed=1")
    with pytest.raises(InputError) as caught:
        flags.parse(["train", argument])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
