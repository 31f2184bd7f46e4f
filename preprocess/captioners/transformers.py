"""A model folder as captioner, in process: its own vision tower, greedy decoding, batched over requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taro.grounding.prompts import load_template
from taro.models.resolve import folder_sha256, model_id, resolve_model
from taro.preprocess.captioners.base import Failure, Request, after_reasoning
from taro.preprocess.config import CaptionConfig

if TYPE_CHECKING:
    from taro.models.encoder import Encoder

__all__ = ["TransformersCaptioner", "model_facts"]


class TransformersCaptioner:
    """See `taro.preprocess.captioners.base.Captioner`; `facts`: those of `model_facts`. A model from the folder of the
    job's `encoder` uses that tower; device and dtype are the encoder's. Of a model that thinks before it answers the
    caption is what follows its reasoning; it fails where that does not end."""

    def __init__(self, config: CaptionConfig, facts: dict[str, Any], encoder: Encoder) -> None:
        from taro.models.load import load_policy

        assert config.model is not None
        folder, weight = resolve_model(config.model), encoder.weight
        tower = encoder if folder.samefile(encoder.folder) else True
        self.policy = load_policy(folder, device=weight.device, dtype=weight.dtype, tower=tower)
        self.prompt, self.fingerprint = str(facts["prompt"]), str(facts["fingerprint"])
        self._config = config

    def describe(self, requests: Sequence[Request]) -> list[str | Failure]:
        """One text or failure a request, in order."""
        from taro.models.decoding import generate
        from taro.models.sampler import Decoding

        prompts = []
        for request in requests:
            frames, times_s, duration_s = request.cut()
            features = self.policy.encode(frames, times_s, self._config.sampling, duration_s=duration_s)
            prompts.append(self.policy.prompt(features, self.prompt))
        decoding = Decoding(max_new_tokens=self._config.max_new_tokens, temperature=0.0,
                            repetition_penalty=self._config.repetition_penalty)
        rollouts = generate(self.policy, prompts, G=1, decoding=decoding)
        return [after_reasoning(prompt.opened + self.policy.decode(ids[mask]))
                for prompt, ids, mask in zip(prompts, rollouts.ids_BGR[:, 0], rollouts.mask_BGR[:, 0], strict=True)]


def model_facts(config: CaptionConfig, whole: bool, dtype: str) -> dict[str, Any]:
    """What makes the captions, from files alone: model, fingerprint (whatever decides what it says), prompt. `whole`:
    it is asked for whole clips, which takes another prompt."""
    from taro.models.folder import template_name

    assert config.model is not None
    folder = resolve_model(config.model)
    template = load_template(config.template or template_name(folder) or "taro")
    prompt = config.prompt or (template.caption_prompt if whole else template.segment_prompt)
    said = config.model_dump(mode="json", include={"max_new_tokens", "repetition_penalty", "sampling"})
    digest = hashlib.sha256(json.dumps([folder_sha256(folder), said, dtype], sort_keys=True).encode()).hexdigest()
    return {"method": config.method, "model": model_id(folder)[0], "fingerprint": f"transformers:{digest[:32]}",
            "prompt": prompt, "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}
