"""The sandbox's Qwen2.5-VL: a small configuration of the stock architecture, and its folder on disk.

2.2 million parameters: language model of width 192 and 4 layers, vision tower of width 96 and 3 layers. At 84 pixels a
window of the tower is a whole frame. rope_theta is 10,000 since heads are 32 wide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taro.sandbox.tokens import CHAT_TEMPLATE, VOCABULARY_SIZE, build_tokenizer

__all__ = ["MEAN", "PATCH_PX", "STD", "build_model", "model_config", "save_model"]

PATCH_PX = 14
MEAN = STD = (0.25, 0.25, 0.25)
"""pixel normalisation: the ground is dark"""
MIN_PIXELS, MAX_PIXELS = 28 * 28, 1024 * 28 * 28


def model_config() -> Any:
    """`Qwen2_5_VLConfig` of the sandbox."""
    from transformers import Qwen2_5_VLConfig

    ids = build_tokenizer().get_vocab()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    text = {
        "vocab_size": VOCABULARY_SIZE, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_parameters": rope, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|pad|>"],
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 3, "out_hidden_size": 192,
        "patch_size": PATCH_PX, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [2], "tokens_per_second": 2,
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|image_pad|>"],
    )


def build_model(seed: int) -> Any:
    """A stock `Qwen2_5_VLForConditionalGeneration` with fresh weights, fp32, head tied to the embedding."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(model_config(), attn_implementation="sdpa")
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model.float()


def save_model(model: Any, folder: Path) -> Path:
    """Writes a complete model folder: bf16 weights, configs, tokenizer, processor, taro.json naming the template."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model_config()
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _save_processor(folder)
    (folder / "taro.json").write_text(json.dumps({"template": "sandbox"}) + "\n", encoding="utf-8")
    generation = {"do_sample": False, "eos_token_id": config.text_config.eos_token_id,
                  "pad_token_id": config.text_config.pad_token_id}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return folder


def _save_processor(folder: Path) -> None:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    shared: dict[str, Any] = {
        "image_mean": list(MEAN), "image_std": list(STD), "patch_size": PATCH_PX, "merge_size": 2,
        "temporal_patch_size": 2, "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }  # fmt: skip
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shared),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**shared),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
