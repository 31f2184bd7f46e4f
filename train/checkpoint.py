"""What a resumed run needs, on disk: float32 weights, the optimizer's moments, and a small JSON. Never a pickle.

A checkpoint is written under a temporary name, every file fsynced, `state.json` (with the hashes of the others and its
own) last, then renamed; so a folder named `step-N` is complete, whenever the run was killed. What the disk damages
later is found by its hash: `resume_checkpoint` takes the newest that is whole and puts newer ones aside, deleting none.
Random draws need no state: each is a function of its name (`taro.core.draws`). `step` counts completed updates. Left
out: the vision tower and the reference policy, which are the base checkpoint's own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import TaroError
from taro.core.files import file_sha256, fsync, open_regular, remove_temporary_folders, replace_folder, write_atomically
from taro.core.json import strict_json
from taro.core.tensors import write_tensors
from taro.train.optimizer.optimizer import Optimizer

__all__ = ["DamagedError", "RunState", "checkpoints", "load_checkpoint", "prune_checkpoints", "read_state",
           "resume_checkpoint", "save_checkpoint"]

log = logging.getLogger(__name__)

VERSION = 1
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
TENSORS = ("model.safetensors", "optimizer.safetensors")


class DamagedError(TaroError):
    """A checkpoint's files are not what was written."""


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
    data_sha256: str = ""
    """of the queries trained on and their features; "" in checkpoints of an older taro"""

    def __post_init__(self) -> None:
        whole = (self.step, self.skipped, self.nonfinite_streak, 0 if self.best_step is None else self.best_step)
        if any(type(number) is not int or number < 0 for number in whole) or not isinstance(self.data_sha256, str) \
                or not isinstance(self.best_score, int | float | None):
            raise TypeError(f"not the state of a run: {self!r:.200}")


def save_checkpoint(folder: Path, named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
                    optimizer: Optimizer | torch.optim.Optimizer, state: RunState) -> Path:
    """Writes `folder`/step-N; returns it. A folder of that name is replaced. Where the disk refuses, nothing of the new
    one is left and OSError is raised."""
    final = folder / f"step-{state.step:06d}"
    temporary = folder / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    parameters: dict[str, Any] = dict(named_parameters)
    if isinstance(optimizer, Optimizer):
        parameters, moments = _kept(optimizer)
    else:
        moments = {f"{name}.{key}": optimizer.state[parameter][key]
                   for name, parameter in parameters.items() if parameter in optimizer.state for key in MOMENTS}
    try:
        temporary.mkdir(parents=True)
        content = {"version": VERSION, "state": asdict(state),
                   "sha256": {name: write_tensors(temporary / name, tensors)
                              for name, tensors in zip(TENSORS, (parameters, moments), strict=True)}}
        write_atomically(temporary / "state.json", json.dumps({**content, "check": _check(content)}, indent=1).encode())
        fsync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs its bytes
        raise
    replace_folder(temporary, final)
    return final


def resume_checkpoint(folder: Path, named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
                      optimizer: Optimizer | torch.optim.Optimizer) -> RunState | None:
    """Fills parameters and optimizer from the newest checkpoint that is whole; None where there is no checkpoint.

    Newer ones that are damaged are renamed to damaged-step-N, so that training can write step-N again. Raises TaroError
    where all are damaged, or where a whole one is another policy's."""
    parameters, damaged = list(named_parameters), []
    for path in reversed(checkpoints(folder)):
        try:
            state = load_checkpoint(path, parameters, optimizer)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        for bad, why in damaged:
            aside = _free_name(folder / f"damaged-{bad.name}")
            bad.rename(aside)
            log.warning("%s; it is kept as %s, and the run goes on from %s", why, aside.name, path.name)
        return state
    if damaged:
        raise TaroError(f"{folder}: expected a whole checkpoint, got {len(damaged)} damaged ones "
                        f"({'; '.join(str(error) for _, error in damaged)}). Bring one back from a copy; or move the "
                        "checkpoints folder away and resume, which begins again at step 0")
    return None


def load_checkpoint(path: Path, named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
                    optimizer: Optimizer | torch.optim.Optimizer) -> RunState:
    """Fills parameters and optimizer from a checkpoint, checking hashes, names and shapes. Raises DamagedError, or
    TaroError where it is another policy's."""
    from safetensors import SafetensorError, safe_open

    state, hashes = _read(path)
    for name in TENSORS:
        try:
            found = file_sha256(path / name)
        except OSError as error:
            raise DamagedError(f"{path / name}: damaged or missing ({error.strerror})") from None
        if found != hashes.get(name):
            raise DamagedError(f"{path / name}: damaged (its sha256 is not the one in state.json)")
    parameters = dict(named_parameters)
    try:
        with contextlib.ExitStack() as stack, torch.no_grad():
            weights, moments = (stack.enter_context(safe_open(path / name, framework="pt")) for name in TENSORS)
            _check_shapes(path, weights, moments, parameters)
            held = set(moments.keys())
            if isinstance(optimizer, Optimizer):
                _fill(optimizer, weights, moments)
                return state
            for name, parameter in parameters.items():  # one tensor at a time in host memory
                parameter.copy_(weights.get_tensor(name))
                if f"{name}.step" in held:  # the step count stays on the CPU, as AdamW keeps it
                    optimizer.state[parameter] = {
                        key: moments.get_tensor(f"{name}.{key}").to("cpu" if key == "step" else parameter.device)
                        for key in MOMENTS}
    except SafetensorError as error:
        raise DamagedError(f"{path}: damaged ({error!s:.200})") from None
    return state


def _kept(optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Weights and moments of one rank's optimizer in full precision, in the shapes of the parameters."""
    weights = {slot.name: slot.weight.view(slot.parameter.shape) for slot in optimizer.slots}
    moments = {}
    for slot in optimizer.slots if optimizer.steps else ():
        for piece in slot.pieces()[1:]:
            moments[f"{slot.name}.{piece.kind}"] = piece.tensor.view(slot.parameter.shape)
        moments[f"{slot.name}.step"] = torch.tensor(float(optimizer.steps))
    return weights, moments


def _fill(optimizer: Optimizer, weights: Any, moments: Any) -> None:
    held = [name for name in moments.keys() if name.endswith(".step")]  # noqa: SIM118  a file, no dict

    def read(name: str, kind: str, start: int, n: int) -> torch.Tensor:
        if kind == "weight":
            tensor = weights.get_tensor(name)
        elif held:
            tensor = moments.get_tensor(f"{name}.{kind}")
        else:
            return torch.zeros(n)
        return torch.as_tensor(tensor.reshape(-1)[start : start + n])

    optimizer.load(read, int(moments.get_tensor(held[0])) if held else 0)


def _check_shapes(path: Path, weights: Any, moments: Any, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Raises TaroError where two open files hold other tensors than this policy's weights and moments."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if {name: tuple(weights.get_slice(name).get_shape()) for name in list(weights.keys())} != shapes:
        raise TaroError(f"{path}: its weights are not this policy's (names or shapes differ); "
                        "resume with the policy that the run was started with")
    held = set(moments.keys())
    for name in held:
        parameter_name, _, key = name.rpartition(".")
        shape = tuple(moments.get_slice(name).get_shape())
        if shape != (() if key == "step" else shapes.get(parameter_name)) or any(
                f"{parameter_name}.{other}" not in held for other in MOMENTS):
            raise TaroError(f"{path}: its optimizer state is not this policy's ({name[:200]!a} has shape "
                            f"{shape}); resume with the policy that the run was started with")


def read_state(path: Path) -> RunState:
    """The JSON part of a checkpoint. Raises DamagedError; TaroError where it is of another version."""
    return _read(path)[0]


def _read(path: Path) -> tuple[RunState, dict[str, str]]:
    try:
        with open_regular(path / "state.json") as file:
            data = strict_json(file.read())
        if data["version"] != VERSION:
            raise TaroError(f"{path}: checkpoint version {data['version']!r:.40}, this taro reads {VERSION}")
        check, state, hashes = data.pop("check", None), RunState(**data["state"]), dict(data["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a checkpoint of taro train ({error!r:.200}); expected state.json, "
                           "model.safetensors, optimizer.safetensors") from None
    if check is not None and check != _check(data):  # an older taro wrote none
        raise DamagedError(f"{path / 'state.json'}: damaged (its check does not fit the rest of it)")
    if path.name != f"step-{state.step:06d}":
        raise DamagedError(f"{path}: its state.json is of step {state.step!r:.40}")
    return state, hashes


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; the rename that gave them their name says that they were written whole."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def prune_checkpoints(folder: Path, *, keep: int) -> list[Path]:
    """Removes all but the `keep` newest and what each of these calls the best on validation (a run that must go back to
    an older one finds its best too); returns what was removed."""
    found, removed = checkpoints(folder), []
    kept = {path.name for path in found[-keep:]}
    for path in found[-keep:]:
        try:
            best = read_state(path).best_step
        except TaroError:
            continue  # found again, and said, when it is needed
        kept |= set() if best is None else {f"step-{best:06d}"}
    remove_temporary_folders(folder)
    for path in found:
        if path.name not in kept:
            path.rename(folder / f".tmp-pruned-{path.name}")  # a half-removed folder is no checkpoint
            removed.append(path)
            log.info("removed checkpoint %s", path.name)
    remove_temporary_folders(folder)
    return removed


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _check(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
