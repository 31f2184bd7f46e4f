"""tensorboard, wandb and trackio: a step's numbers, and now and then a table of its rollouts.

None of them is the record (`taro.train.trackers`), so none may stop a run: what fails is said once, and training goes
on. A resumed run is the same run there. tensorboard drops what came after the checkpoint and gets it anew; wandb and
trackio cannot take numbers back, so steps that they had before the run stopped keep their first ones (offline wandb
does not know what it had: such a step is in both of its files). Both know the run by an id in trackers.json of its
folder; no key is in any file of ours. Left out: the trackers' own login, modes and places (WANDB_MODE, TRACKIO_DIR and
the like), which they read themselves."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taro.core import draws
from taro.core.errors import ConfigError
from taro.core.files import write_atomically
from taro.core.json import read_json
from taro.core.text import shortened, visible
from taro.train.settings.tracking import TrackingConfig

__all__ = ["COLUMNS", "Guarded", "Resumed", "open_tracking", "table_rows"]

log = logging.getLogger(__name__)

COLUMNS = ("query_id", "query", "text", "reward", "format", "tiou", "bonus", "drop", "predicted", "windows", "guided",
           "advantage")
LONGEST = 8000
"""characters of a text in a table"""
Row = Mapping[str, Any]
Resumed = tuple[int, Sequence[Row]]
"""the step at which a run goes on, and all lines of metrics.jsonl before it was truncated; (0, []): a new run"""


def table_rows(lines: Sequence[str], count: int, *, seed: int, step: int) -> list[dict[str, Any]]:
    """`count` rows of a step's rollouts (JSON lines), drawn by seed and step, in their order; texts are bounded."""
    chosen = sorted(draws.rng("rollout table", seed, step).permutation(len(lines))[:count].tolist())
    rows = [json.loads(lines[number]) for number in chosen]
    return [{name: shortened(visible(value), LONGEST) if isinstance(value := row.get(name), str) else value
             for name in COLUMNS} for row in rows]


class Guarded:
    """A tracker that may fail: the first failure is a warning, later ones are silent, and training goes on."""

    def __init__(self, name: str, tracker: Any) -> None:
        self._name, self._tracker, self._said = name, tracker, False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Records one step, or one evaluation."""
        self._try(lambda: self._tracker.log(step, values))

    def rollouts(self, step: int, rows: Sequence[Row]) -> None:
        """Records a table of rollouts."""
        self._try(lambda: self._tracker.rollouts(step, rows))

    def close(self) -> None:
        """Flushes what it holds."""
        self._try(self._tracker.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  whatever a disk, a network or a library of others raises
            if not self._said:
                log.warning("%s failed (%s: %s); training goes on, metrics.jsonl has every step", self._name,
                            type(error).__name__, error)
            self._said = True


class _Tensorboard:
    def __init__(self, run: Path, resumed: Resumed) -> None:
        from torch.utils.tensorboard import SummaryWriter

        at, before = resumed
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=at)
        for line in before:  # purged too, though it precedes the checkpoint
            if at and line["step"] == at and "eval" in line:
                self.log(at, {name: value for name, value in line.items() if name != "step"})

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in _flat(values).items():
            self._writer.add_scalar(name, value, step)

    def rollouts(self, step: int, rows: Sequence[Row]) -> None:
        lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS),
                 *(" | ".join(_markdown(row[name]) for name in COLUMNS) for row in rows)]
        self._writer.add_text("rollouts", "\n".join(f"| {line} |" for line in lines), step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """What wandb and trackio have in common. `last`: the last step and the last evaluation that the tracker has."""

    def __init__(self, module: Any, last: Mapping[str, int]) -> None:
        self._module, self._last = module, last

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if step > self._last["eval" if "eval" in values else "step"]:
            self._module.log(_flat(values), step=step)

    def rollouts(self, step: int, rows: Sequence[Row]) -> None:
        if step > self._last["step"]:
            data = [[_cell(row[name]) for name in COLUMNS] for row in rows]
            self._module.log({"rollouts": self._module.Table(columns=list(COLUMNS), data=data)}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the command's own
            self._module.finish()


def open_tracking(name: str, run: Path, tracking: TrackingConfig, config: Mapping[str, Any], *,
                  resumed: Resumed) -> Guarded:
    """Opens the tracker `name` for the run in a folder. Raises ConfigError where it does not start."""
    try:
        if name == "tensorboard":
            return Guarded(name, _Tensorboard(run, resumed))
        known, last = _known(name, run, resumed)
        module = importlib.import_module(name)
        called = tracking.name or run.resolve().name
        with contextlib.redirect_stdout(sys.stderr):
            if name == "wandb":
                opened = module.init(project=tracking.project, entity=tracking.entity, name=called,
                                     group=tracking.group, tags=list(tracking.tags) or None, id=known,
                                     resume="allow", dir=str(run), config=dict(config), allow_val_change=True,
                                     settings=module.Settings(console="off", disable_git=True, disable_code=True))
            else:
                opened = module.init(project=tracking.project, name=f"{called}-{known[:6]}", group=tracking.group,
                                     config=dict(config), resume="allow", embed=False)
        had = int(getattr(opened, "step" if name == "wandb" else "_next_step", 0)) - 1  # offline wandb does not know
        last = {kind: min(step, had) for kind, step in last.items()}
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  a login that is missing, a network that is down, ...
        raise ConfigError(f"trackers: {name} does not start ({type(error).__name__}: {error}); log in or start it "
                          "offline (WANDB_MODE=offline for wandb), or leave it out: metrics.jsonl is always "
                          "written") from None
    return Guarded(name, _Hosted(module, last))


def _known(name: str, run: Path, resumed: Resumed) -> tuple[str, dict[str, int]]:
    """The run's id at a tracker, and the last step and evaluation that it has (-1: none). A new id is written first."""
    path, (at, before) = run / "trackers.json", resumed
    data = read_json(path, error=ConfigError) if at and path.is_file() else {}
    old = data.get(name) if isinstance(data, dict) else None
    last = {"step": -1, "eval": -1}
    if isinstance(old, dict) and isinstance(old.get("id"), str) and old["id"].isalnum():
        for kind in last:
            had = old.get(kind)
            seen = [line["step"] for line in before if ("eval" in line) == (kind == "eval")]
            last[kind] = max([-1, *seen, *([had] if type(had) is int else [])])
        known = old["id"]
    else:
        known = secrets.token_hex(8)
    data = {**(data if isinstance(data, dict) else {}), name: {"id": known, **last}}
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
    return known, last


def _cell(value: Any) -> Any:
    """A value of a table as trackers take it: numbers stay, lists become text."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _markdown(value: Any) -> str:
    """A cell of a Markdown table. Whatever could be markup is written as a character's number."""
    if isinstance(value, float):
        return f"{value:.3g}"
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return "".join("<br>" if char == "\n" else char if char.isalnum() or char in " .,:;?" or ord(char) > 127 else
                   f"&#{ord(char)};" for char in text)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[prefix + key] = float(value)
    return flat
