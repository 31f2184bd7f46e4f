"""What a resumed run needs, on disk, and its way there and back: weights, moments and a small JSON, never a pickle.

`save` writes it while training goes on, `resume` finds the newest whole one and reads it with any number of ranks.
Left out: the vision tower and the reference policy, which are the start policy's own."""

from __future__ import annotations

from taro.train.checkpoint.resume import load_checkpoint, resume_checkpoint
from taro.train.checkpoint.save import Saver, save_checkpoint
from taro.train.checkpoint.state import DamagedError, RunState, checkpoints, prune_checkpoints, read_state

__all__ = ["DamagedError", "RunState", "Saver", "checkpoints", "load_checkpoint", "prune_checkpoints", "read_state",
           "resume_checkpoint", "save_checkpoint"]
