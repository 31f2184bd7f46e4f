"""What a resumed run needs, on disk: float32 weights, the optimizer's moments, and a small JSON. Never a pickle.

A checkpoint is written under a temporary name, every file fsynced, `state.json` (with the hashes of the others) last,
then renamed; so a folder named `step-N` is complete, whenever the run was killed. Random draws need no state: each is
a function of its name (`taro.draws`). `step` counts completed updates. Left out: the vision tower and the reference
policy, which are the base checkpoint's own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from taro.errors import TaroError

__all__ = ["RunState", "checkpoints", "load_checkpoint", "newest_checkpoint", "prune_checkpoints", "read_state",
           "save_checkpoint", "write_text"]

log = logging.getLogger(__name__)

VERSION = 1
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class RunState:
    """Where a run stands, besides its tensors."""

    step: int = 0
    """completed updates"""
    skipped: int = 0
    """updates skipped for a non-finite loss or gradient, so far"""
    nonfinite_streak: int = 0
    best_step: int | None = None
    best_score: float | None = None


def save_checkpoint(folder: Path, named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
                    optimizer: torch.optim.Optimizer, state: RunState) -> Path:
    """Writes `folder`/step-N; returns it. An existing complete one of the same step is replaced."""
    from safetensors.torch import save_file

    final = folder / f"step-{state.step:06d}"
    temporary = folder / f".tmp-step-{state.step:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    parameters = dict(named_parameters)
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
    moments = {f"{name}.{key}": optimizer.state[parameter][key].detach().cpu().contiguous()
               for name, parameter in parameters.items() if parameter in optimizer.state for key in MOMENTS}
    save_file(weights, temporary / "model.safetensors")
    save_file(moments, temporary / "optimizer.safetensors")
    hashes = {name: _sha256(temporary / name) for name in ("model.safetensors", "optimizer.safetensors")}
    for name in hashes:
        _fsync(temporary / name)
    write_text(temporary / "state.json",
               json.dumps({"version": VERSION, "state": asdict(state), "sha256": hashes}, indent=1))
    _fsync(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _fsync(folder)
    return final


def load_checkpoint(path: Path, named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
                    optimizer: torch.optim.Optimizer) -> RunState:
    """Fills parameters and optimizer from a checkpoint, checking hashes, names and shapes. Raises TaroError."""
    from safetensors.torch import load_file

    state = read_state(path)
    for name, sha256 in json.loads((path / "state.json").read_text(encoding="utf-8"))["sha256"].items():
        if not (path / name).is_file() or _sha256(path / name) != sha256:
            raise TaroError(f"{path / name}: damaged or missing (its sha256 is not the one in state.json); "
                            "delete this checkpoint folder and resume from the one before")
    weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    parameters = dict(named_parameters)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes:
        raise TaroError(f"{path}: its weights are not this policy's (names or shapes differ); "
                        "resume with the policy that the run was started with")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            if f"{name}.step" in moments:  # the step count stays on the CPU, as AdamW keeps it
                optimizer.state[parameter] = {
                    key: moments[f"{name}.{key}"].to("cpu" if key == "step" else parameter.device) for key in MOMENTS}
    return state


def read_state(path: Path) -> RunState:
    """The JSON part of a checkpoint. Raises TaroError where it is not one of this version."""
    try:
        data = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise TaroError(f"{path}: checkpoint version {data['version']}, this taro reads {VERSION}")
        return RunState(**data["state"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise TaroError(f"{path}: not a checkpoint of taro train ({error!r}); expected state.json, model.safetensors, "
                        "optimizer.safetensors") from None


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step; None where there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def prune_checkpoints(folder: Path, *, keep: int, best_step: int | None) -> list[Path]:
    """Removes all but the `keep` newest and the best on validation; returns what was removed."""
    removed = []
    for path in checkpoints(folder)[:-keep]:
        if path.name != f"step-{best_step if best_step is not None else -1:06d}":
            shutil.rmtree(path)
            removed.append(path)
            log.info("removed checkpoint %s", path.name)
    for path in folder.glob(".tmp-step-*"):
        shutil.rmtree(path, ignore_errors=True)
    return removed


def write_text(path: Path, text: str) -> None:
    """Replaces a small file atomically: temporary name, fsync, rename."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
