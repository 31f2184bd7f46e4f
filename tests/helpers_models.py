"""Tiny random models of real architecture, saved as real model folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "When does happen From to the a person opens door red square blinks for second time , . ? : I need find specific "
    "moment start end s describe events seconds video query give answer in as then think inside reasoning"
).split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]


def tiny_tokenizer(size: int = 0) -> Any:
    """A byte-level BPE tokenizer without merges (so that any text round-trips), with Qwen's special tokens. `size`:
    of its vocabulary, filled up with words that it writes and never reads; 0: no more than it needs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{i}" for i in range(len(alphabet), size - len(SPECIAL))]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, *words])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[1:2] + SPECIAL[3:],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for c in m['content'] %}{% if c['type'] == 'video' %}<|vision_start|><|video_pad|>"
        "<|vision_end|>{% elif c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def tiny_qwen2_5_vl(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True, width: int = 32
) -> Path:
    """Saves a random Qwen2.5-VL (2 language layers, 2 tower layers, windows smaller than a frame) and its processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    head = width // 4
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [head // 2 - 2 * (head // 6), head // 6, head // 6],
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 320, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": tied,
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": width,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        tie_word_embeddings=tied,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|image_pad|>"],
    )  # fmt: skip
    _save_model(Qwen2_5_VLForConditionalGeneration, config, folder, seed, dtype)
    save_processor(folder, tokenizer)
    return folder


def tiny_qwen3_vl(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True, width: int = 32
) -> Path:
    """Saves a random Qwen3-VL (4 language layers, the first 3 with deepstack; 4 tower layers; heads wider together than
    the model, as in the released ones) and its processor."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 320, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": tied,
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": width,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1, 3],
        },
        tie_word_embeddings=tied,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|image_pad|>"],
    )  # fmt: skip
    _save_model(Qwen3VLForConditionalGeneration, config, folder, seed, dtype)
    save_qwen3_processor(folder, tokenizer)
    return folder


def _save_model(stock: Any, config: Any, folder: Path, seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    model = stock._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)  # the default initialisation gives nearly uniform predictions: too easy to match
            elif "bias" in name:
                parameter.normal_(std=0.1)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.uniform_(0.5, 1.5)  # all ones would not tell these norms from one another
    model.to(dtype).save_pretrained(folder)


def with_template(folder: Path, copy: Path, ending: str = "<think>\n") -> Path:
    """A copy of a model folder whose chat template ends with `ending`, as that of a thinking checkpoint does."""
    shutil.copytree(folder, copy)
    template = (copy / "chat_template.jinja").read_text(encoding="utf-8")
    inside = template.rindex("{% endif %}")  # of add_generation_prompt
    (copy / "chat_template.jinja").write_text(template[:inside] + ending + template[inside:], encoding="utf-8")
    return copy


TINY = {"qwen2_5_vl": tiny_qwen2_5_vl, "qwen3_vl": tiny_qwen3_vl}
"""a tiny model of every family that taro knows, by model_type: the protocol's checks run over them"""


def save_processor(folder: Path, tokenizer: Any) -> None:
    """The stock Qwen2.5-VL processor over `tokenizer`, without a size limit that would resize small frames."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 768 * 28 * 28}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)


def save_qwen3_processor(folder: Path, tokenizer: Any) -> None:
    """The stock Qwen3-VL processor over `tokenizer`; its size limits are over all frames together."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 768 * 32 * 32}
    half = [0.5, 0.5, 0.5]
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=16, image_mean=half, image_std=half),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
