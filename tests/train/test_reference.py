"""Where the start policy lies and where layer inputs wait change no number: whole runs, and two processes over gloo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from taro.core.jsonl import read_jsonl
from taro.train.config import TrainConfig
from taro.train.loop import train
from tests.helpers_models import TINY
from tests.train.conftest import Tiny

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("seconds", "phases", "memory", "tokens_per")
"""beginnings of what two runs of the same numbers differ in"""


def numbers(config: TrainConfig) -> list[dict[str, Any]]:
    train(config)
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)}
            for row in read_jsonl(config.out / "metrics.jsonl")]


def test_a_run_has_the_same_numbers_wherever_the_reference_lies(tiny: Tiny, tmp_path: Path) -> None:
    length = {"unit": "steps", "amount": 2}
    recomputed = {"checkpoint_activations": True, "offload_activations": True}
    plain = numbers(tiny.config(tmp_path / "gpu", length=length))
    host = numbers(tiny.config(tmp_path / "host", length=length, reference="host", optimizer=recomputed))
    assert host == plain and plain[-1]["kl"] > 0
    alone = numbers(tiny.config(tmp_path / "sharded", length=length, reference="sharded",
                                rollout={"batch_prompts": 1}))
    assert [row["kl"] for row in alone] == [row["kl"] for row in plain]


def test_what_does_not_go_together_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ValidationError, match=r"set that to true as well"):
        make_config(optimizer={"offload_activations": True})
    with pytest.raises(ValidationError, match="places a second policy"):
        make_config(lora={}, reference="host")


RANK = """
import sys, types, torch, torch.distributed as dist
from pathlib import Path
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.train.config import TrainConfig
from taro.train.ranks import Ranks
from taro.train.reference import open_reference
from tests.models.helpers import sampled
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/rendezvous", rank=rank, world_size=2)
for folder in (Path(name) for name in sys.argv[3:]):
    policy = load_policy(folder, tower=True)
    prompts, rollouts = sampled(policy)
    prompts = [*prompts, prompts[0]]
    ids, mask = (torch.cat([x, x[:1]]) for x in (rollouts.ids_BGR, rollouts.mask_BGR))
    with torch.no_grad():
        plain = score(policy, prompts, ids, mask)
    config = TrainConfig(policy=str(folder), shards="none", out=folder / "run", reference="sharded",
                         rollout={"batch_prompts": 1})
    reference = open_reference(config, folder, torch.device("cpu"), bf16=False, ranks=Ranks(rank, 2, rank))
    for counts in ((2, 1), (2, 0), (0, 1)):
        mine = slice(0, counts[0]) if rank == 0 else slice(counts[0], sum(counts))
        batch = types.SimpleNamespace(prompts=prompts[mine], ids_BGR=ids[mine], mask_BGR=mask[mine],
                                      decoding=types.SimpleNamespace(temperature=1.0))
        found = reference(batch)
        assert len(found) == counts[rank] and torch.equal(found, plain[mine]), (rank, counts)
dist.destroy_process_group()
"""


def test_a_sharded_reference_scores_as_a_whole_one_on_ranks_of_unequal_work(tmp_path: Path) -> None:
    """Two prompts and one, two and none, none and one: every rank takes part in every gather."""
    folders = [str(TINY[family](tmp_path / family, tied=False)) for family in sorted(TINY)]
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path), *folders], cwd=ROOT,
                              stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        ended = [(rank.communicate(timeout=600)[1], rank.returncode) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [code for _, code in ended] == [0, 0], "".join(errors[-2000:] for errors, _ in ended)
