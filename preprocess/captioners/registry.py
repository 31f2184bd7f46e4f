"""Where captions may come from: `caption.method`, one row each. Another captioner is a file beside this one and a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taro.preprocess.captioners.base import Captioner
from taro.preprocess.captioners.imported import Given, file_facts
from taro.preprocess.captioners.transformers import TransformersCaptioner, model_facts
from taro.preprocess.config import CaptionConfig, CaptionMethod

if TYPE_CHECKING:
    import torch

__all__ = ["METHODS", "Method", "captioner_facts", "given_captions"]


@dataclass(frozen=True)
class Method:
    """One source of captions. facts(settings, whole clips, dtype): what makes them, for plan and manifest, from files
    alone; captioner(settings, facts, device, dtype): loads the one to be asked, None where none is; given(settings):
    what somebody else wrote, None where nothing is."""

    facts: Callable[[CaptionConfig, bool, str], dict[str, Any]] = lambda config, whole, dtype: {}
    captioner: Callable[[CaptionConfig, dict[str, Any], torch.device, str], Captioner] | None = None
    given: Callable[[CaptionConfig], Given] | None = None


METHODS: dict[CaptionMethod, Method] = {
    "transformers": Method(facts=model_facts, captioner=TransformersCaptioner),
    "file": Method(facts=file_facts, given=Given.of_file),
    "annotations": Method(given=lambda config: Given(None)),
    "none": Method(),
}


def captioner_facts(config: CaptionConfig, whole: bool, dtype: str) -> dict[str, Any]:
    """What makes the captions, for plan and manifest, from files alone: the method and its facts; {} where there are
    no captions. `whole`: a captioner is asked for whole clips. Raises AnnotationError, ModelError."""
    if config.method == "none":
        return {}
    return {"method": config.method, **METHODS[config.method].facts(config, whole, dtype)}


def given_captions(config: CaptionConfig) -> Given | None:
    """What a job takes captions from, None where a model writes them or there are none. Raises AnnotationError."""
    given = METHODS[config.method].given
    return None if given is None else given(config)
