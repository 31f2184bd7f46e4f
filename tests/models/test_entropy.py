"""What the logits tell besides log-probs, from chunks that are recomputed, equals that of all logits of a full row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from taro.models import logprobs
from taro.models.attention import causal
from taro.models.families import FAMILIES
from taro.models.load import load_policy
from taro.models.logprobs import score, score_also
from taro.models.policy import Policy
from tests.helpers_models import TINY
from tests.models.helpers import sampled

TEMPERATURE = 0.7


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder: Path = TINY[request.param](tmp_path_factory.mktemp("tiny"))
    return load_policy(folder, tower=True, trainable=True)


def plain(policy: Policy, prompts: list, rollouts) -> Iterator[tuple[tuple[int, int], torch.Tensor, torch.Tensor]]:
    """Of each response its place, entropies, and which tokens are the most likely ones: float64, one full row each, the
    banned tokens cut out of the vocabulary."""
    for b, prompt in enumerate(prompts):
        for g in range(rollouts.ids_BGR.shape[1]):
            ids = rollouts.ids_BGR[b, g][rollouts.mask_BGR[b, g]]
            tail = torch.arange(prompt.next_position, prompt.next_position + len(ids)).expand(3, len(ids))
            positions = torch.cat([prompt.positions_3P, tail], 1)[:, None]
            hidden = policy.language_model(torch.cat([prompt.ids_P, ids])[None], positions, causal, video=prompt.video)
            logits = policy.language_model.head(hidden[0, len(prompt.ids_P) - 1 : -1]).double() / TEMPERATURE
            p = logits[:, ~policy.banned_V].softmax(-1)
            first = (~policy.banned_V).nonzero()[:, 0][p.argmax(-1)]
            yield (b, g), -(p * p.log()).sum(-1), first == ids


@pytest.mark.parametrize("checkpointed", [False, True])
def test_entropies_and_their_gradient_equal_those_of_all_logits(
        policy: Policy, checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values within 1e-4 nats, the gradient of each parameter within 1e-3 of its norm."""
    monkeypatch.setattr(logprobs, "TOKENS_AT_ONCE", 7)
    prompts, rollouts = sampled(policy)
    wanted = torch.zeros(rollouts.ids_BGR.shape, dtype=torch.float64)
    right = torch.zeros(rollouts.ids_BGR.shape, dtype=torch.bool)
    for (b, g), entropies, top in plain(policy, prompts, rollouts):
        places = torch.tensor(b), torch.tensor(g), rollouts.mask_BGR[b, g].nonzero()[:, 0]
        wanted, right = wanted.index_put(places, entropies), right.index_put(places, top)
    weights = torch.randn(rollouts.ids_BGR.shape, generator=torch.Generator().manual_seed(0))
    (wanted * weights).sum().backward()
    gradients = {name: x.grad.clone() for name, x in policy.named_parameters() if x.grad is not None}
    policy.language_model.zero_grad()
    also = score_also(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, also=("entropy", "top"),
                      temperature=TEMPERATURE, checkpoint_activations=checkpointed)
    (also[1] * weights).sum().backward()
    torch.testing.assert_close(also[1].double(), wanted, atol=1e-4, rtol=0)
    assert torch.equal(also[2].bool(), right) and 0 < right.sum() < rollouts.mask_BGR.sum()
    assert len(gradients) > 10 and float(wanted.detach().max()) > 1
    for name, parameter in policy.named_parameters():
        if name in gradients:
            gap = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
            assert gap < 1e-3, f"{name}: relative gradient gap {gap:.1e}"
    policy.language_model.zero_grad()
    with torch.no_grad():
        same = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, temperature=TEMPERATURE)
    assert torch.equal(same, also[0].detach()), "asking for more changes no log-prob"


def test_no_token_at_all_has_a_graph_and_moves_nothing(policy: Policy) -> None:
    prompts, rollouts = sampled(policy, R=4)
    found = score(policy, prompts, rollouts.ids_BGR, torch.zeros_like(rollouts.mask_BGR))
    found.sum().backward()
    assert (found == 0).all()
    assert all(x.grad is None or not x.grad.any() for x in policy.parameters())
