"""The front door: every command loads and teaches; errors are messages with the right exit code."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from taro.cli import app as cli
from taro.core.errors import ShardError
from taro.core.version import __version__

ROOT = Path(__file__).resolve().parents[2]
RUN = CliRunner()


def run(*words: str) -> Any:
    """Runs `taro WORDS` in this process."""
    return RUN.invoke(cli.app, list(words), prog_name="taro")


def test_version_and_help() -> None:
    assert run("--version").stdout == f"taro {__version__}\n"
    page = run("--help").stdout
    assert all(name in page for name in cli.COMMANDS)


def test_help_imports_no_stage_and_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom taro.cli.app import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])\n"
        "print([m for m in ('torch','numpy','transformers','rich','pydantic','taro.preprocess','taro.shards',"
        "'taro.train','taro.cli.train') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("words", [("train", "taro-7bb"), ("train", "sandbox", "--set", "polcy=x"),
                                   ("preprocess", "sandbx"), ("preprocess", "sandbox", "--set", "vidoes=x")])
def test_a_misspelt_recipe_or_setting_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    """What takes seconds to import (torch, transformers) is imported once the settings are right."""
    code = (f"import sys\nfrom taro.cli.app import main\ntry:\n    main({list(words)!r})\n"
            "except SystemExit as stop:\n"
            "    print(stop.code, [m for m in ('torch', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout == "1 []\n" and done.stderr.startswith("error: "), done.stderr


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_loads_and_its_help_teaches(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    for example in cli.COMMANDS[name].examples:
        assert example.split(" --")[0].split(' "')[0] in " ".join(result.output.split()), result.output


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_the_examples_use_options_that_exist(name: str) -> None:
    """An example in --help is parsed by the command that it shows."""
    for example in cli.COMMANDS[name].examples:
        words = shlex.split(example)
        assert words[:2] == ["taro", name]
        assert unknown_options(words[1:]) == []


def unknown_options(words: list[str]) -> list[str]:
    """Options of a command line (without `taro`) that its command does not have; sub-commands are followed."""
    command, rest = cli._load(words[0]), words[1:]
    while getattr(command, "commands", None) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


def test_wrong_use_is_exit_2_with_a_suggestion() -> None:
    result = run("tarin")
    assert result.exit_code == 2 and "train" in result.output and "Traceback" not in result.output
    assert run("shards", "info").exit_code == 2


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command `fails` whose behaviour the test sets: the front door is tried, not any stage."""
    module = ModuleType("failing_command")
    monkeypatch.setitem(sys.modules, "failing_command", module)
    monkeypatch.setitem(cli.COMMANDS, "fails", cli.Command("failing_command", "fails", "Fails."))
    return module


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ShardError("paths-000001.tar: cut"), 1, "error: paths-000001.tar: cut"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device; expected"),
        (NotADirectoryError(20, "Not a directory", "run/checkpoints"), 1, "error: run/checkpoints: Not a directory; "),
        (KeyError("lost"), 1, "--debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_messages(failing: ModuleType, error: BaseException, code: int, said: str) -> None:
    def fails() -> None:
        raise error

    failing.fails = fails  # type: ignore[attr-defined]
    result = run("fails")
    assert result.exit_code == code
    assert said in result.stderr and "Traceback" not in result.output
    assert "Traceback" in run("--debug", "fails").stderr or isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize("words", [
    ("sandbox", "make", "{file}", "--videos", "1"), ("sandbox", "make", "{file}/x", "--videos", "1"),
    ("quickstart", "--out", "{file}"), ("quickstart", "--out", "{file}/x")])
def test_a_file_where_a_folder_should_be_is_said_and_is_no_defect(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    result = run(*(word.format(file=tmp_path / "file") for word in words))
    assert result.exit_code == 1 and str(tmp_path / "file") in result.output, result.output
    assert "Traceback" not in result.output and "defect" not in result.output, result.output


def test_debug_counts_anywhere_on_the_line() -> None:
    missing = ("shards", "info", "no-such-folder")
    for words in [("--debug", *missing), (*missing, "--debug")]:
        done = subprocess.run([sys.executable, "-m", "taro", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" in done.stderr
    done = subprocess.run([sys.executable, "-m", "taro", *missing], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "no-such-folder" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    """`taro --help | head -1` ends quietly."""
    done = subprocess.run(f"{shlex.quote(sys.executable)} -m taro --help | head -1", shell=True, cwd=ROOT,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == ""
