"""The `taro` command: the table of commands, and how an error becomes a message and an exit code.

`COMMANDS` is the whole command line, in the order of the work. A command's module is imported when the command runs,
so `taro --help` is instant and `taro train` needs no decoding library. The front page and messages about wrong use are
plain text, since rich takes longer to load than all the rest; a command's own --help is rich. A TaroError ends as one
message on stderr and exit code 1, wrong use of the command line as 2, an interruption as 130 (SIGTERM: 143); a
traceback only with `--debug` (anywhere on the line). What is left out: everything that a command does; see taro/cli/.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from taro.cli.failures import explained
from taro.cli.line import WORDS
from taro.cli.output import examples, say, say_error, visible_streams
from taro.cli.signals import INTERRUPTED, stop_code, stoppable, works
from taro.core.errors import Stopped, TaroError
from taro.core.text import one_line
from taro.core.version import __version__

__all__ = ["COMMANDS", "Command", "app", "main"]


HELP = ["-h", "--help"]


@dataclass(frozen=True)
class Command:
    """A row of the command line: where the command lives, its line in `taro --help`, examples for its own --help.

    `attribute` names a function (one command) or a `typer.Typer` (a group of them) in `module`."""

    module: str
    attribute: str
    help: str
    examples: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "taro.cli.quickstart", "quickstart",
        "See the whole method work on the embedded sandbox: videos to a trained model and a report, in minutes.",
        ("taro quickstart", "taro quickstart --out demo --steps 2")),
    "preprocess": Command(
        "taro.cli.preprocess", "preprocess",
        "Stage 1: videos and annotations to shards (decode, segment, caption, encode, paths).",
        ("taro preprocess sandbox --set videos=world/videos --set annotations=world/annotations.jsonl --dry-run",
         "taro preprocess my.yaml --set out=shards"),
    ),
    "shards": Command(
        "taro.cli.shards", "app",
        "Look at, verify, view, compare, cut, join, push and pull shard sets.",
        ("taro shards info shards", "taro shards verify shards", "taro shards view shards --out page",
         "taro shards split shards parts --by split", "taro shards merge a b both",
         "taro shards push shards team/set"),
    ),
    "train": Command(
        "taro.cli.train", "train", "Stage 2: train a policy on shards (guided phase, then free); no video is opened.",
        ("taro train taro-7b --set policy=MODEL --set shards=shards --set out=run", "taro train my.yaml --resume")),
    "config": Command("taro.cli.config", "app", "Show every setting of a stage: meaning, value, where it comes from.",
                      ("taro config train taro-7b", "taro config preprocess sandbox --json")),
    "eval": Command(
        "taro.cli.eval", "evaluate",
        "Score a checkpoint on shards or on videos, or a file of predictions.",
        ("taro eval --policy run/export --shards shards --split val",
         "taro eval --predictions out.jsonl --dataset jsonl --annotations annotations.jsonl"),
    ),
    "ground": Command("taro.cli.ground", "ground", "Ask one video when something happens.",
                      ('taro ground video.mp4 "the person opens the door" --policy MODEL',)),
    "annotations": Command("taro.cli.annotations", "app", "Read annotation files as the stages do, and lint them.",
                           ("taro annotations lint annotations.jsonl --dataset jsonl",)),
    "sandbox": Command("taro.cli.sandbox", "app", "The embedded synthetic world: make videos, rebuild the tiny models.",
                       ("taro sandbox make world --videos 20 --seed 7",)),
    "sensitivity": Command(
        "taro.cli.sensitivity", "sensitivity", "Measure how a policy's reasonings depend on the order of a video.",
        ("taro sensitivity --policy run/export --shards shards --split val --limit 32 --html page.html",)),
    "report": Command("taro.cli.report", "report", "Write the HTML report of a training run.", ("taro report run",)),
}


class _Lazy(typer.core.TyperGroup):
    """The group of all commands: stubs with a help line each, replaced by the real command when one is used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, row in COMMANDS.items():
            self.commands[name] = typer.core.TyperCommand(name=name, short_help=row.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        loaded = _load(name) if command is not None and name in COMMANDS else command
        works()
        return name, loaded, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as error:
            _interrupted(str(error))
        except KeyboardInterrupt:
            _interrupted()
        except Exception as error:  # the last place that can answer with a message
            if stop_code() is not None:  # the interruption, as a library handed it on
                _interrupted()
            if isinstance(error, TaroError):
                _fail(f"error: {error}", debug=ctx.params["debug"])
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | EOFError):
                if isinstance(getattr(error, "message", None), str):
                    error.message = one_line(error.message)  # type: ignore[attr-defined]
                raise  # typer's own: wrong use, Exit, Abort
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # `taro ... | head`
            known = explained(error, ctx.invoked_subcommand)
            if known is not None:
                _fail(f"error: {known}", debug=ctx.params["debug"])
            _fail(f"error: {type(error).__name__}: {error}\nThis may be a defect of taro: run the command again with "
                  f"--debug and report what it prints.", debug=ctx.params["debug"])


def _load(name: str) -> Any:
    """The real command `name`, imported now, with its examples under its help."""
    row = COMMANDS[name]
    target = getattr(importlib.import_module(row.module), row.attribute)
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
    else:
        single = typer.Typer(rich_markup_mode="rich", add_completion=False)
        single.command(name)(target)
        command = typer.main.get_command(single)
    command.name, command.help, command.epilog = name, command.help or row.help, examples(row.examples)
    _flags_without_type(command)
    return command


def _flags_without_type(command: Any) -> None:
    """A flag takes no value, so its help names no type: typer would write <bool>."""
    for one in [command, *getattr(command, "commands", {}).values()]:
        for option in [*one.params, one.get_help_option(typer.Context(one, help_option_names=HELP))]:
            if getattr(option, "is_flag", False):
                option.metavar = ""


def _interrupted(said: str = INTERRUPTED) -> NoReturn:
    say("", said, err=True)
    raise typer.Exit(stop_code() or 130) from None


def _fail(message: str, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    say_error(message)
    raise typer.Exit(1) from None


app = typer.Typer(name="taro", cls=_Lazy, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": HELP},
                  epilog="New here? `taro quickstart`; then `taro COMMAND --help` shows each step by example.")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"taro {__version__}")
        raise typer.Exit


@app.callback()
def _front(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train multimodal LLMs to ground queries in videos and to reason with time.

    Videos and annotations --preprocess--> shards --train--> a Hugging Face checkpoint."""


def main(args: list[str] | None = None) -> None:
    """Runs the command line (`sys.argv` by default); `--debug` counts wherever it stands before a lone `--`."""
    # Threads that wait by spinning take the cores that other processes (decoders, neighbours) need: on two busy cores a
    # step took 5 times as long with spinning threads. Read when torch is loaded, so it must be set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    line = list(sys.argv[1:] if args is None else args)
    end = line.index("--") if "--" in line else len(line)
    if "--debug" in line[:end]:
        line = ["--debug", *(word for word in line[:end] if word != "--debug"), *line[end:]]
    WORDS[:] = line
    with stoppable(to_the_end=args is None), visible_streams():
        try:
            app(line, prog_name="taro")
        except SystemExit as end:  # click has words and a code of its own for an interruption before a command begins
            raise SystemExit((stop_code() or end.code) if end.code else end.code) from None
