"""The decoder of one layer body against the plain one of taro.models.grouped, which test_exact.py checks against stock
transformers, for both families: same tokens, same log-probs, whatever leaves, waits, is forced, fused or compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taro.core.draws import uniforms
from taro.models import grouped
from taro.models.adapters import Lora, Merged, add_adapters
from taro.models.decoder import generate as decoder
from taro.models.decoder import steps
from taro.models.decoder.generate import How, prompts_at_once
from taro.models.decoder.prefix import flash_blocks, merge, merge_blocks, plain
from taro.models.decoder.rows import Drawn, Rows, cache_bytes
from taro.models.decoder.weights import joined, layers_of
from taro.models.families import FAMILIES
from taro.models.load import load_compute, load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Rollouts
from tests.helpers_models import TINY
from tests.models.helpers import CASES, make_prompt
from tests.train.live_bytes import LiveBytes

A, G, R = 4, 3, 20
FORCED = [[[65, 66, 67, 68, 69], [65], []], [[], [], []], [[], [70, 71], [72]], [[66] * R, [67] * 25, [68] * (R - 1)]]
"""lengths that differ, none, all of a response, and more than fits"""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    """Many tokens end its responses, so that rollouts end at different times."""
    policy = load_policy(folder, tower=True)
    policy.__dict__["eos_ids"] = (*policy.eos_ids, *range(100, 124))
    return policy


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[Prompt]:
    return [make_prompt(policy, case, "when" + "?" * n)[0] for n, case in enumerate(CASES[:A])]


def draw(generate: Callable[..., Rollouts], policy: Policy, prompts: list[Prompt], decoding: Decoding,
         **others: Any) -> Rollouts:
    draws = np.stack([[uniforms(R, "decoder", a, g) for g in range(G)] for a in range(len(prompts))])
    return generate(policy, prompts, G=G, decoding=decoding, uniforms_BGR=draws, **others)


def assert_same(found: Rollouts, wanted: Rollouts, tolerance: float = 2e-5) -> None:
    for name in ("ids_BGR", "mask_BGR", "finished_BG", "forced_BG"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    torch.testing.assert_close(found.logprobs_BGR, wanted.logprobs_BGR, atol=tolerance, rtol=0)


SETTINGS = {
    "sampled": Decoding(R), "greedy": Decoding(R, temperature=0.0), "warm": Decoding(R, temperature=1.7),
    "cut": Decoding(R, top_p=0.9, top_k=60), "penalised": Decoding(R, temperature=0.0, repetition_penalty=1.2),
}


@pytest.mark.parametrize("decoding", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("forced", [None, FORCED], ids=["free", "forced"])
def test_tokens_and_logprobs_are_those_of_plain_decoding(policy: Policy, prompts: list[Prompt], decoding: Decoding,
                                                         forced: Any) -> None:
    wanted = draw(grouped.generate, policy, prompts, decoding, forced=forced)
    found = draw(decoder.generate, policy, prompts, decoding, forced=forced)
    assert_same(found, wanted)
    if decoding == SETTINGS["sampled"] and forced is None:
        assert len(set(found.mask_BGR.sum(-1).flatten().tolist())) > 3, "rollouts end at different times"
        assert bool(found.finished_BG.any())


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_prompts_are_admitted_as_others_leave(policy: Policy, prompts: list[Prompt], at_once: int,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    admitted: list[tuple[int, int]] = []
    plain_admit = Rows.admit

    def admit(self: Rows, slot: int, number: int, prompt: Prompt) -> None:
        admitted.append((slot, number))
        plain_admit(self, slot, number, prompt)

    monkeypatch.setattr(Rows, "admit", admit)
    wanted = draw(grouped.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED)
    found = draw(decoder.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED,
                 how=How(at_once=at_once, check_every=2))
    assert_same(found, wanted)
    assert [number for _, number in admitted] == list(range(A))
    assert {slot for slot, _ in admitted} == set(range(at_once))


def test_steps_of_fixed_sizes_decode_the_same(policy: Policy, prompts: list[Prompt],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph does, as plain calls: rows that are done take part, and further own keys are looked at."""
    made: list[steps.Steps] = []
    plain_init = steps.Steps.__init__

    def init(self: steps.Steps, *args: Any, **others: Any) -> None:
        plain_init(self, *args, **others)
        made.append(self)

    monkeypatch.setattr(steps.Steps, "__init__", init)
    monkeypatch.setattr(steps, "LEAST_REACH", 8)
    for forced, at_once in ((None, None), (FORCED, 2)):
        wanted = draw(grouped.generate, policy, prompts, SETTINGS["sampled"], forced=forced)
        found = draw(decoder.generate, policy, prompts, SETTINGS["sampled"], forced=forced,
                     how=How(graphs=True, at_once=at_once, check_every=4))
        assert_same(found, wanted)
    sizes = made[0].captured
    assert sizes[0] == (A * G, A, 8) and len(sizes) == len(set(sizes)) > 2
    assert {reach for _, _, reach in sizes} <= {8, 16, R}
    assert {rows for rows, _, _ in sizes} <= set(steps.sizes_of(A * G, 0.75))


def test_sizes_are_few() -> None:
    assert steps.sizes_of(16, 0.75) == [16, 12, 9, 7, 5, 4, 3, 2]
    assert len(steps.sizes_of(128, 0.75)) == 15 and len(steps.sizes_of(128, 0.5)) == 7
    assert steps.sizes_of(2, 0.75) == [2] and steps.sizes_of(1, 0.75) == [1]
    assert [steps.smallest([16, 12, 9, 2], n) for n in (16, 13, 12, 2, 1, 0)] == [16, 16, 12, 2, 2, 2]


def test_forced_prefixes_are_not_decoded(policy: Policy, prompts: list[Prompt],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain_choose = Rows.choose
    monkeypatch.setattr(Rows, "choose", lambda self: (calls.append(1), plain_choose(self))[1])
    policy.__dict__["eos_ids"], ends = (0,), policy.eos_ids  # none ends
    try:
        forced = [[[65] * (R - 5), [66] * (R - 4), [67] * (R - 3)]]
        drawn = draw(decoder.generate, policy, prompts[:1], SETTINGS["sampled"], forced=forced)
    finally:
        policy.__dict__["eos_ids"] = ends
    assert len(calls) == 5 and bool(drawn.mask_BGR.all())


def test_rows_are_prefilled_as_much_at_once_as_has_room(policy: Policy, prompts: list[Prompt],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = draw(decoder.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED)
    monkeypatch.setattr("taro.models.decoder.forced.MOST_SCORES", 1)
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED), wanted)


def test_one_compiled_body_serves_all_layers_and_sizes(policy: Policy, prompts: list[Prompt],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as one graph without a break; what a compiler makes of it is the benchmark's business."""
    from torch._dynamo.testing import CompileCounter

    if policy.family.name != "qwen3_vl":
        pytest.skip("tracing takes seconds; the layers of the other family differ by biases and without head norms")
    counter = CompileCounter()
    monkeypatch.setattr(steps, "BACKEND", counter)
    torch._dynamo.reset()
    for made in (steps._compiled_layer, steps._compiled_picking):
        made.cache_clear()
    wanted = draw(grouped.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED)
    how = How(compiled=True, graphs=True, check_every=4)
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED, how=how), wanted)
    first = counter.frame_count
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"], forced=FORCED, how=how), wanted)
    draw(decoder.generate, policy, prompts[:3], SETTINGS["sampled"], how=how)
    assert first == counter.frame_count == 2, "the layer and the choice of a token, once"
    assert steps.compile_seconds() > 0
    for made in (steps._compiled_layer, steps._compiled_picking):
        made.cache_clear()
    torch._dynamo.reset()


def parameters_of(policy: Policy) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach().clone()) for name, parameter in policy.named_parameters()]


def test_fused_projections_are_the_policys_own_weights(folder: Path, prompts: list[Prompt]) -> None:
    """One copy of the weights: what is written into a parameter is in the fused matrix."""
    policy = load_policy(folder)
    before = parameters_of(policy)
    apart = draw(decoder.generate, policy, prompts, SETTINGS["sampled"], how=How(fused=False))
    attention, mlp = policy.language_model.lm.layers[1].self_attn, policy.language_model.lm.layers[1].mlp
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert joined(parts) is None
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"]), apart)
    assert parts[0] is attention.q_proj.weight, "the same parameters, for whoever holds them"
    whole = joined(parts)
    assert whole is not None and joined([mlp.gate_proj.weight, mlp.up_proj.weight]) is not None
    assert all(name == other and torch.equal(one, two) for (name, one), (other, two)
               in zip(before, parameters_of(policy), strict=True))
    weights = layers_of(policy.language_model, torch.float32)[1]
    assert weights.qkv[0].data_ptr() == whole.data_ptr() == attention.q_proj.weight.data_ptr()
    memory = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in policy.parameters()}
    assert sum(memory.values()) == sum(one.nbytes for one in policy.parameters()), "no memory beside the parameters"
    with torch.no_grad():
        attention.k_proj.weight.mul_(1.5)
    assert torch.equal(weights.qkv[0], torch.cat([one.detach() for one in parts]))
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"]),
                draw(grouped.generate, policy, prompts, SETTINGS["sampled"]))
    policy.language_model.double()  # moves every parameter
    assert joined(parts) is None
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"]),
                draw(grouped.generate, policy, prompts, SETTINGS["sampled"]))


def test_a_merged_replica_is_decoded_with_its_own_weights_after_each_refresh(folder: Path,
                                                                             prompts: list[Prompt]) -> None:
    policy = load_policy(folder)
    add_adapters(policy, Lora(4, 8.0, 0.0, ("q_proj", "v_proj", "up_proj")), seed=0)  # k and gate stay the base's
    base = policy.language_model.lm.layers[0].self_attn.k_proj.weight
    merged = Merged(policy)
    drawn = [draw(decoder.generate, merged.policy, prompts, SETTINGS["sampled"])]
    assert merged.policy.language_model.lm.layers[0].self_attn.k_proj.weight is base
    with torch.no_grad():
        for _, parameter in policy.trained():
            parameter.add_(0.05)
    merged.refresh()
    drawn.append(draw(decoder.generate, merged.policy, prompts, SETTINGS["sampled"]))
    assert_same(drawn[1], draw(grouped.generate, merged.policy, prompts, SETTINGS["sampled"]))
    assert not torch.equal(drawn[0].ids_BGR, drawn[1].ids_BGR)
    scored = score(policy, prompts, drawn[1].ids_BGR, drawn[1].mask_BGR)
    torch.testing.assert_close(scored, drawn[1].logprobs_BGR, atol=1e-4, rtol=0)


def test_roundings_are_those_of_stock_layers_under_autocast(folder: Path, prompts: list[Prompt]) -> None:
    """bf16: log-probs are as near to scoring's as those of the stock layers are."""
    policy = load_compute(folder, torch.device("cpu"), bf16=True)
    gaps = []
    for generate in (grouped.generate, decoder.generate):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            drawn = draw(generate, policy, prompts, SETTINGS["sampled"], forced=FORCED)
            scored = score(policy, prompts, drawn.ids_BGR, drawn.mask_BGR)
        gaps.append((scored - drawn.logprobs_BGR)[drawn.mask_BGR].abs())
    assert 0 < float(gaps[0].mean()) < 0.02
    assert float(gaps[1].mean()) < 1.25 * float(gaps[0].mean()) and float(gaps[1].max()) < 2 * float(gaps[0].max())


def test_caches_are_within_a_budget(policy: Policy, prompts: list[Prompt]) -> None:
    P = max(len(prompt.ids_P) for prompt in prompts)
    one = cache_bytes(policy, P=P, G=G, R=R, dtype=torch.float32)
    drawn = Drawn(policy, A, G, R, None)
    rows = Rows(policy, drawn, [[]] * A * G, SETTINGS["greedy"], slots=2, P=P, prefix=plain)
    caches = (rows.prefix_k, rows.prefix_v, rows.own_k, rows.own_v)
    assert sum(cache.nbytes for kind in caches for cache in kind) == 2 * one
    for memory, wanted in ((one - 1, 1), (2 * one, 2), (3 * one - 1, 2), (9 * one, A)):
        how = How(memory_bytes=memory)
        assert prompts_at_once(policy, prompts, G=G, decoding=SETTINGS["greedy"], how=how) == wanted
    assert prompts_at_once(policy, prompts, G=G, decoding=SETTINGS["penalised"], how=How(memory_bytes=2 * one)) == 1
    assert_same(draw(decoder.generate, policy, prompts, SETTINGS["sampled"], how=How(memory_bytes=2 * one)),
                draw(decoder.generate, policy, prompts, SETTINGS["sampled"]))


def test_caches_shrink_a_layer_at_a_time(policy: Policy, prompts: list[Prompt]) -> None:
    many, R = 8, 256
    with LiveBytes([]) as live:
        rows = Rows(policy, Drawn(policy, A, many, R, None), [[]] * A * many, Decoding(R, temperature=0.0), slots=A,
                    P=max(len(prompt.ids_P) for prompt in prompts), prefix=plain)
        size = sum(cache.nbytes for kind in (rows.prefix_k, rows.prefix_v, rows.own_k, rows.own_v) for cache in kind)
        layers = len(rows.own_k)
        assert layers >= 2 and size > 0.5 * live.now
        live.peak = before = live.now
        rows.shrink(np.arange(5, 29), np.array([0, 1, 3]))
    assert rows.own_k[0].shape[0] == 24 and rows.prefix_k[0].shape[0] == 3
    assert live.now < before - 0.2 * size, "what left is free again"
    assert live.peak < before + 0.8 * size / layers, "old and new of one layer at a time"


def test_attention_over_parts_is_attention_over_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    B, K, M, P, d = 3, 2, 5, 40, 8
    q, k, v = (torch.randn(B, K, n, d, generator=generator, dtype=torch.float64) * 3 for n in (M, P, P))
    lengths = torch.tensor([40, 17, 1])
    mask = (torch.arange(P) < lengths[:, None])[:, None, None]
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    mixed, sums = plain(q, k, v, lengths)
    torch.testing.assert_close(mixed, wanted)
    first, second = (plain(q, k[:, :, part], v[:, :, part], torch.full((B,), n))
                     for part, n in ((slice(0, 12), 12), (slice(12, P), 28)))
    torch.testing.assert_close(merge(*first, *second)[0], wanted[0])
    blocks = [plain(q, k[:, :, at : at + 10], v[:, :, at : at + 10], (lengths - at).clamp(1, 10))
              for at in range(0, P, 10)]
    some = torch.stack([(lengths > at)[:, None, None].expand(B, K, M) for at in range(0, P, 10)], 2)
    parts = torch.stack([one for one, _ in blocks], 2).masked_fill(~some[..., None], float("nan"))
    found = merge_blocks(parts, torch.stack([one for _, one in blocks], 2).masked_fill(~some, float("-inf")))
    torch.testing.assert_close(found, (mixed, sums))


def test_what_cannot_be_compiled_runs_uncompiled(monkeypatch: pytest.MonkeyPatch,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    def refuse(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C compiler\nhere")

    monkeypatch.setattr(steps, "BACKEND", refuse)
    function = steps._Timed(lambda x: x + 1, "the test")
    assert [int(function("kind", torch.tensor(n))) for n in range(3)] == [1, 2, 3]
    said = [one.getMessage() for one in caplog.records if one.name == steps.__name__ and one.levelname == "WARNING"]
    assert len(said) == 1 and said[0].startswith("the test runs uncompiled") and "no C compiler here" in said[0]


def test_compiled_code_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert steps.cache_folder() == tmp_path / "taro" / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    assert steps.cache_folder() == tmp_path / "named"


@pytest.mark.parametrize("P", [5, 16, 40])
def test_a_prefix_in_blocks_is_the_whole_prefix(P: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's kernel is asked of each block, by plain attention."""
    monkeypatch.setattr("taro.models.decoder.prefix.BLOCK", 16)
    generator = torch.Generator().manual_seed(P)
    B, K, M, d = 3, 2, 5, 8
    q, k, v = (torch.randn(B, K, n, d, generator=generator) * 2 for n in (M, P, P))
    lengths = torch.tensor([P, 1, P // 2 + 1])

    def attend(q_NMd: torch.Tensor, k_Xd: torch.Tensor, v_Xd: torch.Tensor, starts: torch.Tensor, used: torch.Tensor,
               most: int) -> tuple[torch.Tensor, torch.Tensor]:
        mixed, sums = torch.full(q_NMd.shape, float("nan")), torch.full(q_NMd.shape[:2], float("inf"))
        for n, (start, count) in enumerate(zip(starts.tolist(), used.tolist(), strict=True)):
            assert 0 <= count <= most and start + count <= len(k_Xd)
            if count:
                scores = q_NMd[n] @ k_Xd[start : start + count].T * d**-0.5
                mixed[n], sums[n] = scores.softmax(-1) @ v_Xd[start : start + count], scores.logsumexp(-1)
        return mixed.view(-1, d), sums.view(-1)

    torch.testing.assert_close(flash_blocks(q, k, v, lengths, attend), plain(q, k, v, lengths))
