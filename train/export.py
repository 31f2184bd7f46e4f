"""The export of a run: a Hugging Face folder that loads unedited, with the prompt template beside the weights."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import yaml

from taro.core.errors import TaroError
from taro.core.files import fsync, remove_temporary_folders, replace_folder, write_atomically
from taro.core.tensors import LazyTensor
from taro.models.adapter_folder import write_adapter
from taro.models.adapters import Lora
from taro.models.export import export_checkpoint
from taro.train.checkpoint import DamagedError, load_checkpoint
from taro.train.checkpoint.read import Reader
from taro.train.checkpoint.state import step_folder
from taro.train.open import Run

__all__ = ["export_run"]

log = logging.getLogger(__name__)


def export_run(run: Run, progress: Callable[[int, int], None] = lambda *_: None) -> Path:
    """Writes `out`/export, and `out`/adapter where adapters were trained; returns the first. All ranks call it, rank 0
    writes. An older export is there until the new one is whole. `progress`: called with (tensors written, all)."""
    final, temporary = run.folder / "export", run.folder / ".tmp-export"
    run.saver.finish()
    exported = _use_wanted_weights(run)
    if not run.ranks.first:
        return final
    remove_temporary_folders(run.folder)
    try:
        dtype = torch.float32 if run.config.checkpoint.export_dtype == "float32" else None
        with _trained_weights(run, exported) as weights:
            export_checkpoint(run.policy, run.policy.folder, temporary, dtype=dtype, weights=weights,
                              progress=progress)
        template = run.asking.template
        write_atomically(temporary / "template.yaml",
                         yaml.safe_dump(template.model_dump(mode="json"), sort_keys=False).encode())
        write_atomically(temporary / "taro.json", json.dumps(
            {"template": "template.yaml", "template_name": template.name, "template_sha256": template.sha256,
             "no_think": run.config.reward.no_think, "steps": exported, "seed": run.config.seed}, indent=1).encode())
        if run.config.lora is not None:
            _write_apart(run, temporary)
        for path in (*temporary.iterdir(), temporary):
            fsync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs its bytes
        raise
    replace_folder(temporary, final)
    return final


def _write_apart(run: Run, export: Path) -> None:
    """Writes `out`/adapter, which peft loads over the base, with the template files of `export`. An adapter's folder as
    the start leaves none: its base, with that adapter merged into it, is nowhere."""
    final, temporary = run.folder / "adapter", run.folder / ".tmp-adapter"
    if run.policy.adapter is not None:
        log.warning("%s is an adapter, which was merged into its base before training: the new adapter fits no model "
                    "that is on a disk, so export/ alone is written", run.config.policy)
        return
    assert run.config.lora is not None
    try:
        write_adapter(run.policy, Lora(**run.config.lora.model_dump()), run.config.policy, temporary)
        for name in ("template.yaml", "taro.json"):
            shutil.copyfile(export / name, temporary / name)
        for path in (*temporary.iterdir(), temporary):
            fsync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    replace_folder(temporary, final)


def _use_wanted_weights(run: Run) -> int:
    """Loads the best checkpoint where that is to be exported and is not the last. Returns the step of the weights."""
    if run.config.checkpoint.export != "best" or run.state.best_step is None or run.state.best_step == run.state.step:
        return run.state.step
    best = run.folder / "checkpoints" / step_folder(run.state.best_step)
    try:
        load_checkpoint(best, run.optimizer, ranks=run.ranks, facts=run.must_stay)
    except DamagedError as error:
        raise TaroError(f"{error}. Training is done and this was the best on validation; bring it back from a copy, or "
                        "export the last weights instead: --resume --set checkpoint.export=last") from None
    return run.state.best_step


@contextlib.contextmanager
def _trained_weights(run: Run, step: int) -> Iterator[dict[str, LazyTensor]]:
    """By name those weights of which the policy computes with a rounded copy, as the checkpoint of `step` has them: a
    rank has slices of them only. In host memory there is one at a time."""
    copies = {slot.name: slot for slot in run.optimizer.slots if slot.is_copy}
    with contextlib.ExitStack() as stack:
        if not copies:
            yield {}
            return
        folder = run.folder / "checkpoints" / step_folder(step)  # written or checked a moment ago
        reader = stack.enter_context(Reader(folder)).check(hashes=False)
        yield {name: LazyTensor(slot.weight.dtype, tuple(slot.parameter.shape),
                                partial(_whole, reader, name, tuple(slot.parameter.shape)))
               for name, slot in copies.items()}


def _whole(reader: Reader, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return reader.read(name, "weight", 0, torch.Size(shape).numel()).reshape(shape)
