"""What the system refused, as a message: memory that is full, files that cannot be read or written.

Libraries raise their own kinds for these, and none is a defect of taro: the message names the cause and the settings
that help. Left out: to lower a setting by itself, since a run is what its recipe says."""

from __future__ import annotations

import os

from taro.core.errors import TaroError, first_line, full_memory

__all__ = ["explained"]

TRAIN = ("Begin again in another folder with less at a time: optimizer.micro_prompts=1 (prompts in one backward pass), "
         "optimizer.checkpoint_activations=true (computes again what it does not keep), loss.kl=0 (no reference "
         "policy), a smaller rollout.batch_prompts, rollout.max_new_tokens or rollout.group; or take a smaller policy")
ASK = ("Give a smaller --batch (prompts decoded at once) or --max-new-tokens, or a smaller policy; a set of shorter or "
       "smaller clips needs less")
GPU = {
    "train": TRAIN, "eval": ASK, "sensitivity": ASK,
    "quickstart": "Free it, or hide the GPU: CUDA_VISIBLE_DEVICES= taro quickstart",
    "ground": "Give a smaller --max-new-tokens, or a smaller policy",
    "preprocess": "Give a smaller caption.batch or caption.max_new_tokens, a smaller captioner, or smaller frames "
                  "(sampling.total_tokens, sampling.max_frames). The same command goes on from the last whole slice",
}
"""command -> what to do where the GPU's memory is full"""
HOST = {
    "preprocess": "Give fewer workers, or a smaller slice_bytes. The same command goes on from the last whole slice",
    "train": "Free some, or take a smaller policy; the same command with --resume goes on from the last checkpoint",
}


def explained(error: BaseException, command: str | None) -> TaroError | None:
    """The error that a user of `command` is shown; None where the system refused nothing, so that taro may be wrong."""
    kind, said = full_memory(error), first_line(error)
    if kind == "GPU":
        advice = GPU.get(command or "", "Free it, or hide the GPU: CUDA_VISIBLE_DEVICES= taro ...")
        return TaroError(f"the GPU's memory is full ({said}). Do other programs use it (nvidia-smi)? {advice}")
    if kind == "host":
        advice = HOST.get(command or "", "Free some and run the same command again")
        return TaroError(f"the machine's memory is full ({said}). {advice}")
    number = error.errno if isinstance(error, OSError) else None
    named = getattr(error, "filename", None)
    where = os.fsdecode(named) if isinstance(named, str | bytes) else ""
    if number is None:  # as libraries in Rust write it
        ends = str(error).partition("(os error ")[2].partition(")")[0]
        number = int(ends) if ends.isascii() and ends.isdecimal() and len(ends) < 6 else None
    if number is None:
        return None
    return TaroError(f"{where + ': ' if where else ''}{os.strerror(number)}; expected files and folders that taro can "
                     "read and write: check the path, its permissions and the free space, then run the same command "
                     "again")
