"""docs/what-to-do-when.md has every message that is raised at a user, and no message that is not.

A message is a string with gaps where names and numbers go. An entry of the page is a piece of one, in the first column
of a table, with `...` for gaps: its parts must stand in the message in their order, none across a gap.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

import taro.core.errors
from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "what-to-do-when.md"
PACKAGES = ("taro", "preprocess", "shards", "train")
GAP = "\0"
MODELS_OF_SETTINGS = {"preprocess/config.py", "train/config.py",
                      *(f"train/settings/{name}.py" for name in ("data", "keeping", "rollout", "tracking", "update"))}
"""where a ValueError becomes a ConfigError"""
SHORTEST = 6
"""characters of an entry: what is shorter would stand in messages by chance"""


@dataclass(frozen=True)
class Message:
    """A message and where it is made; `text` has GAP where a value goes."""

    where: str
    text: str

    @property
    def shown(self) -> str:
        """As the page would write it."""
        return re.sub(f" *{GAP}[ {GAP}]*", " ... ", self.text).strip()


def text_of(node: ast.expr) -> str:
    """The constant parts of a message, GAP between them."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return GAP


@cache
def messages() -> tuple[Message, ...]:
    """Every message of an error of taro, wherever the four packages make one; those that only pass on another's words
    are left out."""
    sources = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
               for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
    errors = {*taro.core.errors.__all__, "BadParameter"}
    for tree in [*sources.values()] * 2:  # their subclasses elsewhere, and those of these
        errors |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
                   and any(isinstance(base, ast.Name) and base.id in errors for base in node.bases)}
    found = []
    for where, tree in sources.items():
        wanted = errors | ({"ValueError"} if where in MODELS_OF_SETTINGS else set())
        if where in ("taro/core/json.py", "taro/core/text_files.py"):
            wanted |= {"error"}  # the class that the caller names
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in wanted or (where == "shards/verify.py" and name == "append"):
                text = text_of(node.args[0])
                if len(re.findall(r"[a-z]", text)) >= SHORTEST:
                    found.append(Message(f"{where}:{node.lineno}", text))
    return tuple(found)


def entries() -> list[str]:
    """The pieces of messages in the first columns of the page's tables."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [piece for row in rows for piece in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def holds(message: Message, entry: str) -> bool:
    """Whether the message has the parts of the entry, in order, each in one piece."""
    parts = [re.escape(part.strip(" ")) for part in entry.split("...") if part.strip(" ,;:")]
    return re.search("(.*?)".join(parts), message.text, re.S) is not None


def test_every_message_has_an_entry() -> None:
    pieces = entries()
    lost = [one for one in messages() if not any(holds(one, piece) for piece in pieces)]
    told = "\n".join(f"{one.where}\n    {one.shown}" for one in lost)
    assert not lost, (
        f"{len(lost)} messages have no entry in docs/what-to-do-when.md. For each, add a row to the table of what the "
        "user was doing, such as\n\n    | `a piece of the message, ... for names` | what it means, what to do |\n\n"
        f"or a piece after <br> in a row that says the same already:\n{told}")


def test_every_entry_is_of_a_message() -> None:
    """An entry whose message was changed or is gone would be looked up in vain."""
    said_elsewhere = {"unknown key", "must be given"}  # taro/core/config.py builds them from pydantic's findings
    idle = [piece for piece in entries()
            if piece not in said_elsewhere and not any(holds(one, piece) for one in messages())]
    assert not idle, f"no message holds these pieces any more: change or remove them in {PAGE.name}: {idle}"


def test_an_entry_says_something() -> None:
    short = [piece for piece in entries() if len(piece.replace("...", "").strip()) < SHORTEST - 2]
    assert not short, short


def test_the_comparison_by_hand() -> None:
    """What the tests above rest on."""
    one = Message("x:1", f"{GAP}: holds {GAP} queries, the sidecar says {GAP}")
    assert one.shown == "... : holds ... queries, the sidecar says ..."
    assert holds(one, "queries, the sidecar says") and holds(one, "holds ... the sidecar")
    assert not holds(one, "holds queries"), "a piece stands in one stretch of constant text"
    assert not holds(one, "the sidecar ... holds"), "parts stand in the order of the message"
    assert len(messages()) > 250 and len({one.where.split("/")[0] for one in messages()}) == len(PACKAGES)
