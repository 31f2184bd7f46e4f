"""The chat template of a model folder: which of its files says it, and what it writes around one user turn.

A template is a program that came with the weights. It runs once for a policy, in a process of its own
(render_chat.py) with a deadline and a bound on memory: jinja's sandbox keeps a program from files, not from loops.
Legend of names: the turn is the video, then the user's text, then what opens the response."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from taro.core.errors import ModelError
from taro.core.json import read_json

__all__ = ["Turn", "chat_template", "render_turn"]

MAX_TEMPLATE_BYTES = 1024 * 1024
MAX_RENDERED = 1024 * 1024
"""characters of one turn without the user's text"""
DEADLINE_S = 30.0
"""of the whole process; a real template takes a few hundredths of a second"""
SENTINEL = "\ue000taro-user-text\ue000"
"""stands for the user's text while the template is rendered; private-use characters that no template holds"""
BOOT = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from taro.models.render_chat import main
main()"""


@dataclass(frozen=True)
class Turn:
    """What a template writes: `before` the video, `between` video and user's text, `after` it."""

    before: str
    between: str
    after: str

    def opened(self, special_tokens: list[str]) -> str:
        """The reasoning that the template itself opens at the very end, from its `<think>` on; "" where it opens none.
        The response goes on from there: it has no `<think>` of its own.

        >>> Turn("", "", "<|im_end|>\\n<|im_start|>assistant\\n<think>\\n").opened(["<|im_end|>", "<|im_start|>"])
        '<think>\\n'
        >>> Turn("", "", "<think></think>").opened([])
        ''
        """
        start = self.after.rfind("<think>")
        opened = self.after[start:] if start >= 0 else ""
        ended = "</think>" in opened or any(token in opened for token in special_tokens if token != "<think>")
        return "" if ended else opened


def chat_template(folder: Path, tokenizer: Any) -> str:
    """The folder's chat template. The files that the stock processor reads come first: processor_config.json,
    chat_template.json, chat_template.jinja and additional_chat_templates/default.jinja, which must agree where there
    are several; then the tokenizer's own. Of a list of named templates it is the one named "default".

    Raises ModelError: there is none, or several without a default, or files that differ."""
    found = {name: text for name, value in _of_files(folder) if (text := _default(folder / name, value)) is not None}
    if len(set(found.values())) > 1:
        raise ModelError(f"{folder}: {' and '.join(found)} hold different chat templates, and programs differ in which "
                         "they take; remove all but the one that the model was trained with")
    template = next(iter(found.values()), None)
    if template is None:
        template = _default(folder / "tokenizer_config.json", tokenizer.chat_template)
    if template is None:
        raise ModelError(f"{folder}: no chat template; expected chat_template.jinja or one in tokenizer_config.json")
    return template


def _of_files(folder: Path) -> list[tuple[str, Any]]:
    found = [(name, read_json(folder / name).get("chat_template"))
             for name in ("processor_config.json", "chat_template.json")]
    more = {file.stem: _text(file) for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))[:64]}
    if (folder / "chat_template.jinja").exists():
        found.append(("chat_template.jinja", _text(folder / "chat_template.jinja")))
    elif more:
        found.append(("additional_chat_templates", more))
    return found


def _default(file: Path, value: Any) -> str | None:
    """The template of a value: a text, or the one named "default" of a list [{"name", "template"}] or an object."""
    if isinstance(value, list):
        value = {one["name"]: one.get("template") for one in value
                 if isinstance(one, dict) and isinstance(one.get("name"), str)}
    if isinstance(value, dict):
        names = ", ".join(sorted(str(name)[:40] for name in value)[:8])
        value = value.get("default")
        if not isinstance(value, str):
            raise ModelError(f"{file}: its chat templates are named {names or 'nothing'}; expected one named default. "
                             "Write the one to use to chat_template.jinja")
    if value is None:
        return None
    if not isinstance(value, str):
        raise ModelError(f"{file}: its chat template is a {type(value).__name__}; expected a text, or a list of "
                         '{"name", "template"}')
    return value


def _text(file: Path) -> str:
    if not file.is_file():
        raise ModelError(f"{file}: expected a file with a chat template")
    if file.stat().st_size > MAX_TEMPLATE_BYTES:
        raise ModelError(f"{file}: {file.stat().st_size:,} bytes; at most {MAX_TEMPLATE_BYTES:,} are read")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: expected text in UTF-8, got other bytes at {error.start:,}") from None


def render_turn(folder: Path, template: str, tokenizer: Any, placeholder: str) -> Turn:
    """What the template writes around one user turn, a video before its text. Raises ModelError where it fails, takes
    too long or too much memory, or shows no video (`placeholder`) before the text, or one of them twice."""
    said = _rendered(template, json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str))
    if "error" in said:
        raise ModelError(f"{folder}: the chat template cannot be used: {said['error']:.200}")
    before, video, rest = said["text"].partition(placeholder)
    between, sentinel, after = rest.partition(SENTINEL)
    if not video or not sentinel:
        raise ModelError(f"{folder}: the chat template shows no video before the text; expected {placeholder}")
    if SENTINEL in before + after or placeholder in between + after:
        raise ModelError(f"{folder}: the chat template writes the video or the text more than once; expected each once")
    return Turn(before, between, after)


@lru_cache(maxsize=32)
def _rendered(template: str, special_tokens: str) -> dict[str, str]:
    """{"text": ...} or {"error": ...}, from a process of its own; not a fork, since this one may have threads."""
    if len(template) > MAX_TEMPLATE_BYTES:
        return {"error": f"{len(template):,} characters; at most {MAX_TEMPLATE_BYTES:,} are read"}
    content = [{"type": "video"}, {"type": "text", "text": SENTINEL}]
    job = {"template": template, "limit": MAX_RENDERED, "seconds": int(DEADLINE_S),
           "variables": {**json.loads(special_tokens), "messages": [{"role": "user", "content": content}],
                         "tools": None, "documents": None, "add_generation_prompt": True}}
    try:
        done = subprocess.run([sys.executable, "-I", "-c", BOOT, json.dumps(sys.path)], input=json.dumps(job).encode(),
                              capture_output=True, timeout=DEADLINE_S, check=False)
        said = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": f"it runs for more than {DEADLINE_S:.0f} s"}
    except ValueError:
        return {"error": f"it ends its process (exit code {done.returncode}), by its use of time or memory"}
    return {str(key): str(value) for key, value in said.items()}
