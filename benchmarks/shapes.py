"""Models of released shape with random weights: a config, or a whole Hugging Face folder on disk.

A folder has what a released one has: config, tokenizer and processor files, and bfloat16 weights in several files,
tower included. Its tokenizer is the tests' (bytes, no merges) with a vocabulary of the released size. A tensor is drawn
from its name and the seed, on the GPU where there is one, and written before the next one is drawn.

    python benchmarks/shapes.py 3b FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from taro.core.tensors import LazyTensor, write_tensors
from tests.helpers_models import save_processor, save_qwen3_processor, tiny_tokenizer

__all__ = ["SHAPES", "random_config", "write_model"]

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "3b": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
    "qwen3-8b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "qwen3-tiny": {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    },
}  # fmt: skip
TIED = {"3b", "tiny"}
"""sizes whose head is the embeddings"""
TOKENS = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
          "video_token_id": "<|video_pad|>", "image_token_id": "<|image_pad|>"}
WORDS = 151_665
"""of the released tokenizers; the rest of a vocabulary is never read nor written"""
SMALL_TOWER = {"depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 3}
STD = 0.02
FILE_BYTES = 2 << 30


def random_config(size: str, tokenizer: Any = None) -> Any:
    """The config of a released shape, or of a tiny one, with the special tokens of a tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    shape, tiny, second = SHAPES[size], size.endswith("tiny"), size.startswith("qwen3")
    half = shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"]) // 2
    rope = {"rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}  # fmt: skip
    vision: dict[str, Any] = {"out_hidden_size": shape["hidden_size"]}
    if second:
        rope["mrope_interleaved"] = True
        vision |= {"deepstack_visual_indexes": [0, 1, 2]} | SMALL_TOWER if tiny else {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip
    else:
        vision |= {"tokens_per_second": 2, "window_size": 112}
        vision |= {"fullatt_block_indexes": [2]} | SMALL_TOWER if tiny else {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}  # fmt: skip
    text = {**shape, "rope_parameters": rope, "rms_norm_eps": 1e-6, "tie_word_embeddings": size in TIED,
            "max_position_embeddings": 128_000}
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        text |= ends
        ids = ends | {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    return (Qwen3VLConfig if second else Qwen2_5_VLConfig)(
        text_config=text, vision_config=vision, tie_word_embeddings=size in TIED, **ids)


def write_model(folder: Path, size: str, seed: int = 0) -> Path:
    """Writes a model folder of a size of `SHAPES` with random weights; returns it."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

    tokenizer = tiny_tokenizer(min(WORDS, SHAPES[size]["vocab_size"]))
    second = size.startswith("qwen3")
    config = random_config(size, tokenizer)
    config.dtype = config.text_config.dtype = torch.bfloat16
    with torch.device("meta"):
        stock: Any = Qwen3VLForConditionalGeneration if second else Qwen2_5_VLForConditionalGeneration
        model = stock._from_config(config)
    config.architectures = [stock.__name__]
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()
              if not (name == "lm_head.weight" and size in TIED)}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    (save_qwen3_processor if second else save_processor)(folder, tokenizer)
    _write_weights(folder, shapes, seed)
    return folder


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """The tensors in files of FILE_BYTES at most (or of one tensor) and their index, four files at a time."""
    files = list(_files(shapes))
    names = [f"model-{at + 1:05d}-of-{len(files):05d}.safetensors" for at in range(len(files))]

    def write(name: str, tensors: list[str]) -> None:
        lazy = {one: LazyTensor(torch.bfloat16, shapes[one], partial(_drawn, one, shapes[one], seed))
                for one in tensors}
        write_tensors(folder / name, lazy, metadata={"format": "pt"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, names, files))
    index = {"metadata": {"total_size": sum(2 * math.prod(shape) for shape in shapes.values())},
             "weight_map": {one: name for name, tensors in zip(names, files, strict=True) for one in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _files(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    held, size = list[str](), 0
    for name, shape in shapes.items():
        if held and size + 2 * math.prod(shape) > FILE_BYTES:
            yield held
            held, size = [], 0
        held, size = [*held, name], size + 2 * math.prod(shape)
    yield held


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A weight: matrices and biases normal, norms 1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
    generator = torch.Generator(device).manual_seed(number)
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=STD, generator=generator)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    write_model(args.folder, args.size, args.seed)
    size = sum(path.stat().st_size for path in args.folder.glob("*.safetensors"))
    print(f"{args.folder}: {size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
