"""What a step and a checkpoint cost in memory, calls and reads is bounded: by counts and bytes, never by seconds."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from taro.core.tensors import DTYPES, LazyTensor, tensor_bytes, write_tensors
from taro.grounding.records import DenseCaption
from taro.models import logprobs
from taro.models.grouped import _Prefix, _Rows
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.shards.reader import ShardSet
from taro.train import data, prefixes
from taro.train.ahead import SamplesAhead
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.prefixes import plain_ids, prefix_ids
from tests.models.helpers import CASES, make_prompt, sampled
from tests.train.conftest import Tiny
from tests.train.live_bytes import LiveBytes
from tests.train.tiny import TEMPLATE


class Calls(TorchFunctionMode):
    """Counts what is asked of tensors."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_text_and_reasoning_of_a_response_ask_a_tensor_once_not_token_by_token(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    ids = torch.tensor(policy.encode_text("<think>\n" + "ab " * 200 + "</think>\n<answer>1.0s to 2.0s</answer>"))
    counts = []
    for wanted in (ids[:60], ids):
        with Calls() as calls:
            policy.decode(wanted)
            policy.reasoning_mask(wanted)
        counts.append(calls.count)
    assert counts[0] == counts[1] < 12, counts


@pytest.mark.parametrize("layers", [True, False])
def test_no_logits_are_kept_for_the_backward_pass(
        tiny: Tiny, monkeypatch: pytest.MonkeyPatch, layers: bool) -> None:
    policy = load_policy(tiny.policy, tower=True, trainable=True)
    prompts, drawn = sampled(policy, G=3, R=24)
    V, kept = policy.config.text_config.vocab_size, list[int]()
    weights = {parameter.data_ptr() for parameter in policy.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-1:] == (V,) and tensor.data_ptr() not in weights:
            kept.append(tensor.numel())
        return tensor

    grads = {}
    for chunk in (7, 10**6):
        monkeypatch.setattr(logprobs, "TOKENS_AT_ONCE", chunk)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = score(policy, prompts, drawn.ids_BGR, drawn.mask_BGR, checkpoint_activations=layers)
        assert not kept, f"{len(kept)} tensors of {kept[:3]} logits"
        found.sum().backward()
        grads[chunk] = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
        policy.language_model.zero_grad()
    assert grads[7] and all(torch.allclose(a, b, rtol=1e-4, atol=1e-6)
                            for a, b in zip(grads[7], grads[10**6], strict=True))


@torch.no_grad()
def test_the_decoder_never_holds_two_copies_of_its_caches(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy, tower=True)
    prompts = [make_prompt(policy, case, "when?")[0] for case in CASES[:4]]
    ended = torch.arange(4 * 8) < 8
    with LiveBytes([]) as live:
        prefix = _Prefix(policy, prompts)
        rows = _Rows(policy, prefix, prompts, G=8, R=256)
        size = sum(x.nbytes for pair in (*zip(prefix.keys, prefix.values, strict=True), *rows.own) for x in pair)
        layers = len(prefix.keys)
        assert layers >= 2 and size > 0.7 * live.now, "the caches are what is alive"
        assert live.peak < 1.3 * live.now, "prefixes are read to where they stay"
        live.peak = before = live.now
        assert not rows.drop_finished(ended)
    assert rows.own[0][0].shape[0] == 24 and prefix.keys[0].shape[0] == 3
    assert live.now < before - 0.2 * size, "a group's caches are free again"
    assert live.peak < before + 0.8 * size / layers, "old and new of one layer at a time"


def test_a_prefix_of_n_captions_is_tokenised_log_n_times(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = load_policy(tiny.policy), list[str]()
    captions = [DenseCaption(start_s=i, end_s=i + 1, text="go" * (1 + i % 3)) for i in range(100)]
    lengths = [len(plain_ids(policy, TEMPLATE.guided_prefix("ab", captions[:n]))) for n in range(1, 101)]
    monkeypatch.setattr(prefixes, "plain_ids", lambda *args: calls.append("") or plain_ids(*args))
    for limit in (5, lengths[0] - 1, lengths[0], lengths[3] + 1, lengths[57], lengths[98], lengths[99], 10**6):
        fits = sum(length <= limit for length in lengths)  # the plain rule: drop one by one
        calls.clear()
        found = prefix_ids(policy, TEMPLATE, "ab", captions, limit=limit)
        assert len(found) == (lengths[fits - 1] if fits else 0)
        assert len(calls) <= 2 + math.log2(100)


def test_samples_are_read_while_the_step_before_runs_and_once_each(
        make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    reads, plain = list[tuple[str, str]](), data.read_samples

    def counted(shard_set: ShardSet, refs: Any) -> Any:
        reads.extend((threading.current_thread().name, ref.key) for ref in refs)
        return plain(shard_set, refs)

    monkeypatch.setattr(data, "read_samples", counted)
    config = make_config(length={"amount": 4})
    train(config)
    assert len(reads) == 4 * config.rollout.prompts, "nothing twice, nothing past the last step"
    assert [thread.startswith("samples") for thread, _ in reads] == [False] * 2 + [True] * 6, "the first step waits"


def test_a_sample_that_cannot_be_read_is_raised_when_its_step_comes() -> None:
    class Data:
        def samples(self, step: int, *, rank: int, world: int, steps: int | None) -> tuple[int, list[Any]]:
            if step == 2:
                raise OSError("gone")
            return 0, [step]

        def close(self) -> None:
            """Nothing is open."""

    ahead: Any = SamplesAhead(Data(), 4)  # type: ignore[arg-type]
    assert [ahead.take(0), ahead.take(1)] == [(0, [0]), (0, [1])]
    with pytest.raises(OSError, match="gone"):
        ahead.take(2)
    assert ahead.take(0) == (0, [0]), "another step than the next is read as it is asked for"
    ahead.close()


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_the_library_reads_what_is_written_of_every_dtype(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, DTYPES[name])
    tensors = {"b.1": torch.arange(6).reshape(2, 3).to(dtype), "a": torch.tensor(1).to(dtype),
               "float": torch.arange(3.0), "none": torch.zeros(0, 4)}
    lazy = {key: LazyTensor(x.dtype, tuple(x.shape), lambda x=x: x) for key, x in tensors.items()}
    assert write_tensors(tmp_path / "x", tensors, metadata={"format": "pt"}) == write_tensors(
        tmp_path / "y", lazy, metadata={"format": "pt"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    found = load_file(tmp_path / "x")
    assert set(found) == set(tensors)
    for key, x in tensors.items():
        assert found[key].dtype == x.dtype and bytes(tensor_bytes(found[key])) == bytes(tensor_bytes(x))


MEASURED = """
import ctypes, sys, threading, time
from pathlib import Path
import torch
from taro.train.checkpoint import RunState, Saver, load_checkpoint, save_checkpoint
from taro.train.optimizer.optimizer import Optimizer
from taro.train.settings.update import OptimizerConfig

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

class Watched:
    def __enter__(self):
        self.start, self.most, self.on = anonymous(), 0.0, True
        self.thread = threading.Thread(target=self.run); self.thread.start()
        return self
    def run(self):
        while self.on:
            self.most = max(self.most, anonymous() - self.start); time.sleep(0.001)
    def __exit__(self, *_):
        self.on = False; self.thread.join()

named = {f"p{i}": torch.nn.Parameter(torch.ones(2 * 2**20)) for i in range(16)}  # 8 MiB each, 128 MiB
optimizer = Optimizer(named.items(), OptimizerConfig())
for piece in optimizer.pieces():
    piece.tensor.fill_(1)
folder = Path(sys.argv[1])
with Watched() as saving:
    path = save_checkpoint(folder, optimizer, RunState(step=1))
with Watched() as loading:
    load_checkpoint(path, optimizer)
with Watched() as staging:
    saver = Saver(folder, optimizer)
    for step in (2, 3):
        saver.save(RunState(step=step))
        saver.finish()
print(saving.most, loading.most, staging.most)
saver.close()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory as Linux tells it")
def test_a_checkpoint_takes_the_memory_of_a_few_tensors_not_of_a_model(tmp_path: Path) -> None:
    """384 MiB of weights and moments; each tensor has 8. Staged they are in memory once, however many are saved."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True)
    saving, loading, staging = map(float, done.stdout.split())
    said = f"{saving:.0f} MiB to save, {loading:.0f} MiB to load, {staging:.0f} MiB to stage"
    assert saving < 40 and loading < 80 and 350 < staging < 384 + 40, said
