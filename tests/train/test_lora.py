"""Training of adapters, end to end: what moves, what is kept, what is exported, and what stops a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from taro.core.errors import ConfigError, TaroError
from taro.models.adapters import linears, lora_layers, weight_of
from taro.models.load import load_policy
from taro.train.loop import train
from taro.train.open import open_run
from taro.train.sft import sft_step
from taro.train.step import train_step
from tests.train.conftest import Tiny

LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.1}
SHORT: dict[str, Any] = {"length": {"unit": "steps", "amount": 4}, "optimizer": {"lr": 1e-2}, "loss": {"kl": 0.01}}


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items()
             if key not in {"seconds", "phases", "tokens_per_s", "tokens_per_s_by_phase", "memory_gib",
                           "memory_gib_by_rank"}} for line in lines]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with a checkpoint after 2."""
    out = tmp_path_factory.mktemp("lora") / "run"
    train(tiny.config(out, lora=LORA, **SHORT))
    return out


def test_adapters_move_and_the_base_does_not(trained: Path, tiny: Tiny) -> None:
    """KL is exactly 0 before the first update and not after; the export differs from the base in the targets alone;
    the adapter's folder, merged into the base, is the export."""
    found = rows(trained)
    assert found[0]["kl"] == 0.0 and found[-1]["kl"] > 0
    assert all(line["logprob_gap"] < 1e-4 for line in found)
    before, after = load_file(tiny.policy / "model.safetensors"), load_file(trained / "export" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 2 * 7 and all(name.endswith("_proj.weight") and ".layers." in name for name in changed)
    adapter, merged = load_policy(trained / "adapter"), load_policy(trained / "export")
    for (name, ours), (_, theirs) in zip(adapter.named_parameters(), merged.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6, msg=name)
    settings = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny.policy.resolve()) and settings["revision"] is None
    assert (trained / "adapter" / "taro.json").read_bytes() == (trained / "export" / "taro.json").read_bytes()


def test_checkpoints_hold_adapters_alone(trained: Path) -> None:
    """Rank 2 on the 7 Linears of 2 layers of width 32: 2 x 2 x 32 x (...) numbers, counted by hand; no weight of the
    base, no moment of one."""
    per_layer = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64))
    files = sorted((trained / "checkpoints" / "step-000004").glob("*.safetensors"))
    names, numbers = set(), 0
    for file in files:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  a handle is no mapping
                names.add(name)
                numbers += handle.get_tensor(name).numel()
    assert names and all("lora_" in name for name in names)
    scalars = sum(name.endswith(".step") for name in names)
    assert numbers == 3 * 2 * per_layer + scalars


def test_a_resumed_run_is_the_uninterrupted_one(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Bitwise, dropout and all; other settings of the adapters are refused."""
    out = tmp_path / "run"
    config = tiny.config(out, lora=LORA, **SHORT)
    run = open_run(config, resume=False)
    from taro.train.keep import save_and_prune
    for step in range(3):
        train_step(run)
        if step == 1:
            save_and_prune(run)
    run.close()
    with pytest.raises(ConfigError, match="lora"):
        train(tiny.config(out, lora={**LORA, "rank": 4}, **SHORT), resume=True)
    with pytest.raises(ConfigError, match="lora"):
        train(tiny.config(out, **SHORT), resume=True)
    train(config, resume=True)
    assert rows(out) == rows(trained)
    for name in ("export/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


def test_dropout_does_not_depend_on_micro_batches(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    short = {**SHORT, "length": {"unit": "steps", "amount": 1}, "optimizer": {"lr": 1e-2, "micro_prompts": 2}}
    train(tiny.config(tmp_path / "run", lora=LORA, **short))
    one, two = rows(trained)[0], rows(tmp_path / "run")[0]
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-5)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5, abs=1e-7)


def test_training_goes_on_from_an_adapter(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The start is the merged adapter: KL 0 at step 0, the export holds both adapters, and no adapter/ is written,
    since its base is on no disk. Full training starts there too."""
    short = {**SHORT, "length": {"unit": "steps", "amount": 1}}
    for name, lora in (("more", LORA), ("whole", None)):
        out = tmp_path / name
        train(tiny.config(out, lora=lora, policy=str(trained / "adapter"), **short))
        assert rows(out)[0]["kl"] == pytest.approx(0.0, abs=1e-9) and not (out / "adapter").exists()
        first, second, base = (load_file(one / "model.safetensors")
                               for one in (trained / "export", out / "export", tiny.policy))
        step = sum(float((second[key] - first[key]).abs().sum()) for key in base)
        back = sum(float((second[key] - base[key]).abs().sum()) for key in base)
        assert step > 0 and back > 0
        if lora is not None:
            assert step < back


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_gap_beyond_its_bound_stops_the_run(tiny: Tiny, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    """Under LoRA the adapters move and nobody refreshes the replica; in full training the bound is below float32's
    noise. The step is not counted and writes no line."""
    bound = {} if lora else {"rollout": {"max_gap": 1e-12}}
    run = open_run(tiny.config(tmp_path / "run", lora=lora, **{**SHORT, **bound}), resume=False)
    if lora:
        train_step(run)
        with torch.no_grad():
            for _, one in run.policy.trained():
                one.add_(0.5)
    with pytest.raises(TaroError, match=r"by [0-9.e+-]+ in the mean \(largest [0-9.e+-]+\), beyond rollout.max_gap="):
        train_step(run)
    step, lines = run.state.step, rows(tmp_path / "run")
    run.close()
    assert step == len(lines) == (1 if lora else 0)


def test_a_wrong_target_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.targets: 'qkv' .* q_proj \(2\)"):
        train(tiny.config(tmp_path / "run", lora={**LORA, "targets": ("qkv",)}, **SHORT))


def test_commands_answer_with_an_adapter(trained: Path, tiny: Tiny) -> None:
    """`taro eval` of the adapter's folder, of base and adapter, and of the merged export gives the same scores."""
    from typer.testing import CliRunner

    from taro.cli.app import app

    found = []
    for policy in ([str(trained / "adapter")], [str(tiny.policy), "--adapter", str(trained / "adapter")],
                   [str(trained / "export")]):
        result = CliRunner().invoke(app, ["eval", "--shards", str(tiny.shards), "--split", "val", "--max-new-tokens",
                                          "96", "--device", "cpu", "--json", "--policy", *policy])
        assert result.exit_code == 0, result.output
        found.append({key: value for key, value in json.loads(result.stdout).items()
                      if isinstance(value, float | int) and "second" not in key})
    assert found[0] == found[1] == found[2] and found[0]["queries"] == 2


def test_a_run_starts_from_base_and_adapter(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """As from the adapter's folder alone; it resumes under either spelling, and not from another start."""
    short = {**SHORT, "length": {"unit": "steps", "amount": 1}}
    out, start = tmp_path / "run", str(trained / "adapter")
    train(tiny.config(out, lora=LORA, adapter=start, **short))
    more = {**SHORT, "length": {"unit": "steps", "amount": 2}}
    with pytest.raises(ConfigError, match="adapter"):
        train(tiny.config(out, lora=LORA, **more), resume=True)
    report = train(tiny.config(out, lora=LORA, policy=start, **more), resume=True)
    assert report.steps == 2 and rows(out)[0]["kl"] == 0.0


@pytest.mark.parametrize("states", ["bfloat16", "8bit"])
@pytest.mark.parametrize("objective", ["rl", "sft"])
def test_the_replica_is_fresh_after_every_step(tiny: Tiny, tmp_path: Path, objective: str, states: str) -> None:
    """Whatever the objective and the optimizer's states: what answers is what was trained."""
    changes = {**SHORT, "optimizer": {"lr": 1e-2, "states": states}, "objective": objective}
    run = open_run(tiny.config(tmp_path / "run", lora=LORA, **changes), resume=False)
    before = {name: one.detach().clone() for name, one in run.policy.trained()}
    sft_step(run) if objective == "sft" else train_step(run)
    run.close()
    assert all(not torch.equal(one, before[name]) for name, one in run.policy.trained() if "lora_B" in name)
    replica = linears(run.sampling)
    for name, layer in lora_layers(run.policy).items():
        assert torch.equal(replica[name].weight, weight_of(layer)), name
    assert all(one.dtype == torch.float32 for _, one in run.policy.trained())
