"""Renders an untrusted chat template: the program of a child process, which `taro.models.chat_template` starts.

The environment is that of transformers (`transformers.utils.chat_template_utils`): jinja's immutable sandbox with
`tojson`, `raise_exception`, `strftime_now`, loop controls and `{% generation %}`; a test compares the two. Importing it
from there would cost a second. Processor time, memory and files written are bounded before the template is read."""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["environment", "main"]

MEMORY_BYTES = 512 * 2**20
"""of addresses, the interpreter's own included"""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant said; here its content stands."""

    tags = {"generation"}  # noqa: RUF012  as its base class has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **named: Any) -> None:  # a template may call namespace(self=...)
        jinja2.utils.Namespace.__init__(args[0], _checked(dict(*args[1:], **named)))

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, _checked({name: value})[name])


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    if any(str(name).startswith("_") for name in values):
        raise jinja2.exceptions.SecurityError("a namespace has no names that begin with an underscore")
    return values


def environment() -> ImmutableSandboxedEnvironment:
    """What a chat template may use."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[_Generation, jinja2.ext.loopcontrols])

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
               sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "namespace": _Namespace,
                     "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


def main() -> None:
    """Reads {"template", "variables", "limit", "seconds"} from stdin; writes {"text"} or {"error"} to stdout."""
    job = json.loads(sys.stdin.buffer.read())
    limits = {resource.RLIMIT_CPU: job["seconds"], resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform != "darwin":  # which has no such limit: there the deadline alone bounds it
        limits[resource.RLIMIT_AS] = MEMORY_BYTES
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    try:
        text = environment().from_string(job["template"]).render(job["variables"])
        said = {"text": text} if len(text) <= job["limit"] else {
            "error": f"it writes {len(text):,} characters; at most {job['limit']:,} are read"}
    except MemoryError:
        said = {"error": f"it needs more than {MEMORY_BYTES:,} bytes of memory"}
    except Exception as error:  # noqa: BLE001  a template may raise anything
        said = {"error": f"{error!s:.300}" or type(error).__name__}
    sys.stdout.write(json.dumps(said))
