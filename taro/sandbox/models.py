"""The sandbox's multimodal models: small configurations of the stock architectures, and their folders on disk.

Both families have a language model of width 192 and 4 layers and a vision tower of width 96, which sees a frame of 84
pixels as 3 x 3 tokens: Qwen2.5-VL as it is (3 layers, one window; 2.2 million parameters), Qwen3-VL at 96 pixels (4
layers, learned positions, three deepstack levels; 3.1 million). rope_theta is 10,000 since heads are 32 wide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taro.sandbox.tokens import CHAT_TEMPLATE, STAMPED_SIZE, VOCABULARY_SIZE, build_tokenizer

__all__ = ["FAMILIES", "MEAN", "PATCH_PX", "STD", "build_model", "model_config", "save_model"]

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""model_type of each"""
PATCH_PX = {"qwen2_5_vl": 14, "qwen3_vl": 16}
MEAN = STD = (0.25, 0.25, 0.25)
"""pixel normalisation: the ground is dark"""
MAX_TOKENS = 1024
"""of a frame, as the stock processors bound it"""


def model_config(family: str = "qwen2_5_vl") -> Any:
    """`Qwen2_5_VLConfig` or `Qwen3VLConfig` of the sandbox."""
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    second = family == "qwen3_vl"
    ids = build_tokenizer(stamped=second).get_vocab()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_parameters": rope, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|pad|>"],
    }
    vision: dict[str, Any] = {
        "depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 3, "out_hidden_size": 192,
        "patch_size": PATCH_PX[family], "spatial_merge_size": 2, "temporal_patch_size": 2,
    }
    if second:
        text |= {"vocab_size": STAMPED_SIZE, "head_dim": 32, "rope_parameters": {**rope, "mrope_interleaved": True}}
        vision |= {"depth": 4, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 2]}
    else:
        vision |= {"window_size": 112, "fullatt_block_indexes": [2], "tokens_per_second": 2}
    return (Qwen3VLConfig if second else Qwen2_5_VLConfig)(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        video_token_id=ids["<|video_pad|>"], image_token_id=ids["<|image_pad|>"])


def _stock(family: str) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration if family == "qwen3_vl" else Qwen2_5_VLForConditionalGeneration


def build_model(seed: int, family: str = "qwen2_5_vl") -> Any:
    """A stock model of the family with fresh weights, fp32, head tied to the embedding."""
    import torch

    from taro.models.attention import route

    torch.manual_seed(seed)
    model = _stock(family)._from_config(model_config(family), attn_implementation="sdpa")
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    route(model.model.language_model)
    return model.float()


def save_model(model: Any, folder: Path) -> Path:
    """Writes a complete model folder: bf16 weights, configs, tokenizer, processor, taro.json naming the template."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    family = model.config.model_type
    config = model_config(family)
    config.architectures = [_stock(family).__name__]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    state = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
             if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _save_processor(family, folder)
    (folder / "taro.json").write_text(json.dumps({"template": "sandbox"}) + "\n", encoding="utf-8")
    generation = {"do_sample": False, "eos_token_id": config.text_config.eos_token_id,
                  "pad_token_id": config.text_config.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return folder


def _save_processor(family: str, folder: Path) -> None:
    import transformers as stock

    second, pixels = family == "qwen3_vl", (2 * PATCH_PX[family]) ** 2
    shared: dict[str, Any] = {"image_mean": list(MEAN), "image_std": list(STD), "patch_size": PATCH_PX[family],
                              "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": pixels, "longest_edge": MAX_TOKENS * pixels}
    video = {"shortest_edge": 4 * pixels, "longest_edge": 64 * MAX_TOKENS * pixels} if second else size
    (stock.Qwen3VLProcessor if second else stock.Qwen2_5_VLProcessor)(
        image_processor=stock.Qwen2VLImageProcessor(size=size, **shared),
        tokenizer=build_tokenizer(stamped=second),
        video_processor=(stock.Qwen3VLVideoProcessor if second else stock.Qwen2VLVideoProcessor)(size=video, **shared),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
