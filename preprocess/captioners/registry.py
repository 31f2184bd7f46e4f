"""Where captions may come from: `caption.method`, one row each. Another captioner is a file beside this one and a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taro.preprocess.captioners.base import Captioner
from taro.preprocess.captioners.imported import Given, file_facts
from taro.preprocess.captioners.openai import OpenAICaptioner, endpoint_facts
from taro.preprocess.captioners.transformers import TransformersCaptioner, model_facts
from taro.preprocess.config import CaptionConfig, CaptionMethod

if TYPE_CHECKING:
    from taro.models.encoder import Encoder

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """One source of captions. facts(settings, whole clips, dtype): what makes them, for plan and manifest, from files
    alone; captioner(settings, facts, the job's encoder): loads the one to be asked, None where none is;
    given(settings): what somebody else wrote, None where nothing is. Each may raise AnnotationError or ModelError."""

    facts: Callable[[CaptionConfig, bool, str], dict[str, Any]]
    captioner: Callable[[CaptionConfig, dict[str, Any], Encoder], Captioner] | None = None
    given: Callable[[CaptionConfig], Given | None] = lambda config: None


METHODS: dict[CaptionMethod, Method] = {
    "transformers": Method(model_facts, captioner=TransformersCaptioner),
    "openai": Method(endpoint_facts, captioner=OpenAICaptioner),
    "file": Method(file_facts, given=Given.of_file),
    "annotations": Method(lambda config, whole, dtype: {"method": config.method}, given=lambda config: Given(None)),
    "none": Method(lambda config, whole, dtype: {}),
}
