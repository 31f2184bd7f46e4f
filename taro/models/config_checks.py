"""What a config.json may say: sizes within reason, sizes that fit one another, and nothing that taro would not compute.

Two looks. `check_stored` reads the JSON before transformers sees it, since its classes allocate what it asks for
(`num_labels` makes a table). `check_config` reads the config that transformers made, defaults filled in. Whether the
weights have these sizes is found where they are loaded. What is no fault here is computed by stock modules as it
stands: activations, attention biases, norms, and rotary tables of a fixed scale (linear, yarn, llama3).

Left out: `attention_dropout`, which taro trains without, whatever the config says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from taro.core.errors import ModelError
from taro.core.json import read_json
from taro.models.families import family_of

__all__ = ["MOST", "check_config", "check_stored"]

MOST = {
    "num_hidden_layers": 1024, "depth": 1024, "hidden_size": 2**16, "intermediate_size": 2**19,
    "out_hidden_size": 2**16,
    "num_attention_heads": 1024, "num_key_value_heads": 1024, "num_heads": 1024, "head_dim": 4096, "vocab_size": 2**22,
    "num_labels": 2**14, "patch_size": 256, "temporal_patch_size": 16, "spatial_merge_size": 16, "in_channels": 16,
    "window_size": 2**16, "num_position_embeddings": 2**20, "tokens_per_second": 1000,
    "max_position_embeddings": 2**31, "sliding_window": 2**31, "max_window_layers": 2**31, "mrope_section": 2048,
    "fullatt_block_indexes": 1024, "deepstack_visual_indexes": 1024,
}  # fmt: skip
"""the largest value of each size, wherever in config.json it stands; of a list, of each of its items"""
MAX_ITEMS = 2**14
"""of a list or an object of config.json"""
FIXED_SCALES = ("default", "linear", "yarn", "llama3")
"""kinds of rotary tables that do not change with the length of what was read so far"""


def check_stored(folder: Path) -> None:
    """Raises ModelError where config.json names no family that taro knows, or a size out of bounds."""
    stored = read_json(folder / "config.json")
    kind = stored.get("model_type")
    if isinstance(kind, str):
        family_of(SimpleNamespace(model_type=kind), folder)
        for part, ending in (("text_config", "_text"), ("vision_config", "_vision")):
            inner = stored.get(part)
            inner = inner if isinstance(inner, dict) else {}
            if inner.get("model_type", kind) not in (kind, f"{kind}{ending}"):
                raise ModelError(f"{folder / 'config.json'}: the model_type of its {part} is "
                                 f"{inner['model_type']!s:.60}; expected {kind}{ending}")
    for where, value in _entries(stored, ""):
        if isinstance(value, list | dict) and len(value) > MAX_ITEMS:
            raise ModelError(f"{folder / 'config.json'}: {where} has {len(value):,} items; expected at most "
                             f"{MAX_ITEMS:,}")
        most = MOST.get(where.rpartition(".")[2])
        for one in value if isinstance(value, list) else [value]:
            fits = one is None or (type(one) in (int, float) and 0 <= one <= (most or 0)) or isinstance(one, str | dict)
            if most is not None and not fits:
                raise ModelError(f"{folder / 'config.json'}: {where} is {one!s:.40}; expected at most {most:,}, "
                                 "and not below 0")


def _entries(value: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """Every key of an object and of the objects in it, with its path."""
    for key, inner in value.items():
        where = f"{at}.{key}"[:200] if at else key[:200]
        yield where, inner
        if isinstance(inner, dict):
            yield from _entries(inner, where)


def check_config(folder: Path, config: Any) -> None:
    """Raises ModelError where the parts of a config do not fit one another, or where it asks for what taro does not
    compute: the log-probabilities would be those of another model."""
    family = family_of(config, folder)
    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
    try:
        faults = [*_text_faults(text), *_rotary_faults(text), *_vision_faults(vision, text)] or family.refused(config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        faults = [f"its sizes cannot be read ({type(error).__name__}: {error!s:.100})"]
    if faults:
        raise ModelError(f"{folder / 'config.json'}: {'; '.join(faults[:4])}: not what {family.name} computes here")


def _text_faults(text: Any) -> Iterator[str]:
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    if not (heads >= 1 and shared >= 1 and heads % shared == 0):
        yield f"{heads} attention heads and {shared} key-value heads; expected a multiple"
    if _head_width(text) % 2:
        yield f"heads {_head_width(text)} wide; expected an even number, for rotary positions"
    layers = [kind for kind in getattr(text, "layer_types", None) or () if kind != "full_attention"]
    if layers:
        yield (f"{len(layers)} layers of {layers[0]!s:.40} (use_sliding_window, layer_types); expected full "
               "attention in every layer")


def _head_width(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // max(text.num_attention_heads, 1))


def _rotary_faults(text: Any) -> Iterator[str]:
    """What the rotary table of the language model would not do. Its scale must not depend on the length read: prefill,
    packed rows and decoding would each rotate differently."""
    rope = text.rope_parameters
    kind, share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    if kind not in FIXED_SCALES:
        yield f"rope_type {kind!s:.40}; expected one of {', '.join(FIXED_SCALES)}"
    if share != 1:
        yield f"partial_rotary_factor {share!s:.20}; expected 1"
    numbers = [value for value in rope.values() if type(value) in (int, float)]
    if not all(math.isfinite(value) for value in numbers) or not rope.get("rope_theta", 1.0) > 0 or not (
            rope.get("factor") or 1.0) > 0:
        yield "numbers of its rotary table that are not finite or not above 0"
    sections, half = rope.get("mrope_section"), _head_width(text) // 2
    if not (isinstance(sections, list) and len(sections) == 3 and all(type(n) is int and n >= 0 for n in sections)
            and sum(sections) == half):
        yield f"mrope_section {sections!s:.60}; expected three numbers whose sum is {half}, half of a head"


def _vision_faults(vision: Any, text: Any) -> Iterator[str]:
    for name, wanted in (("temporal_patch_size", 2), ("in_channels", 3), ("out_hidden_size", text.hidden_size)):
        if getattr(vision, name) != wanted:
            yield f"vision_config.{name} {getattr(vision, name)!s:.40}; expected {wanted}"
    for name in ("patch_size", "spatial_merge_size"):
        if not (type(getattr(vision, name)) is int and getattr(vision, name) >= 1):
            yield f"vision_config.{name} {getattr(vision, name)!s:.40}; expected a whole number above 0"
    width = vision.hidden_size // max(vision.num_heads, 1)
    if getattr(vision, "head_dim", None) not in (None, width):
        yield f"vision_config.head_dim {vision.head_dim!s:.40}; expected {width}"
