"""What a config.json asks for is computed as transformers computes it, or refused by name, before anything is built."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from taro.core.errors import ModelError
from taro.models.families import FAMILIES
from taro.models.folder import read_config
from taro.models.load import load_policy
from taro.models.tokenizer_files import growth, tokenizer_errors
from tests.helpers_models import TINY
from tests.models.helpers import CASES, make_prompt

QWEN2, QWEN3 = "qwen2_5_vl", "qwen3_vl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: TINY[name](tmp_path_factory.mktemp("tiny")) for name in FAMILIES}


def changed(folder: Path, to: Path, changes: dict[str, Any]) -> Path:
    """A copy whose config.json has these values, named by their paths."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    for path, value in changes.items():
        *parts, last = path.split(".")
        at = config
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = value
    (to / "config.json").write_text(json.dumps(config))
    return to


HONOURED = [
    (QWEN2, {"text_config.rope_parameters.rope_type": "linear", "text_config.rope_parameters.factor": 4.0}),
    (QWEN3, {"text_config.rope_parameters.rope_type": "linear", "text_config.rope_parameters.factor": 4.0}),
    *((family, {"text_config.rope_parameters.rope_type": "yarn", "text_config.rope_parameters.factor": 4.0,
                "text_config.rope_parameters.original_max_position_embeddings": 64}) for family in (QWEN2, QWEN3)),
    *((family, {"text_config.rope_parameters.rope_type": "llama3", "text_config.rope_parameters.factor": 8.0,
                "text_config.rope_parameters.low_freq_factor": 1.0, "text_config.rope_parameters.high_freq_factor": 4.0,
                "text_config.rope_parameters.original_max_position_embeddings": 64}) for family in (QWEN2, QWEN3)),
    *((family, {"text_config.rope_parameters.rope_theta": 500.0}) for family in (QWEN2, QWEN3)),
    *((family, {"text_config.hidden_act": "gelu"}) for family in (QWEN2, QWEN3)),
    *((family, {"vision_config.hidden_act": "relu"}) for family in (QWEN2, QWEN3)),
    *((family, {"text_config.rms_norm_eps": 0.1}) for family in (QWEN2, QWEN3)),
    *((family, {"text_config.attention_dropout": 0.5}) for family in (QWEN2, QWEN3)),
    (QWEN2, {"text_config.use_sliding_window": True, "text_config.max_window_layers": 2,
             "text_config.layer_types": ["full_attention"] * 2}),
    (QWEN2, {"vision_config.fullatt_block_indexes": [0]}), (QWEN2, {"vision_config.window_size": 28}),
    (QWEN3, {"vision_config.deepstack_visual_indexes": [0, 2, 3]}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), HONOURED, ids=str)
def test_what_is_honoured_gives_the_logits_of_the_stock_model(
        made: dict[str, Path], tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tests.models.test_exact import cached_logits, stock_inputs

    folder = changed(made[family], tmp_path / "x", changes)
    policy = load_policy(folder, tower=True)
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    prompt, frames = make_prompt(policy, CASES[0], "when does the red square blink?")
    inputs = stock_inputs(AutoProcessor.from_pretrained(folder), frames, CASES[0][3], "when does the red square blink?")
    with torch.no_grad():
        plain = stock(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"],
                      video_grid_thw=inputs["video_grid_thw"], position_ids=prompt.positions_3P[:, None]).logits[0]
        mine = cached_logits(policy, prompt)
    torch.testing.assert_close(mine, plain, atol=1e-5, rtol=0)
    before = cached_logits(load_policy(made[family], tower=True), prompt)
    assert float((mine - before).abs().max()) > 1e-3 or not {"rope_theta", "factor"} & {p[-10:] for p in changes}


def test_biases_of_the_attention_are_computed(made: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

    from tests.models.test_exact import cached_logits

    folder = changed(made[QWEN3], tmp_path / "x", {"text_config.attention_bias": True})
    torch.manual_seed(0)
    config = read_config(folder)
    stock = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.normal_(std=0.2) if name.endswith("bias") else parameter.mul_(2)
    stock.save_pretrained(folder)
    policy = load_policy(folder, tower=True)
    prompt, _ = make_prompt(policy, CASES[1], "when?")
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().model.language_model
    with torch.no_grad():
        embeds = prompt.video.place(stock.embed_tokens(prompt.ids_P[None]))
        mask = torch.zeros(1, len(prompt.ids_P), dtype=torch.bool)
        mask[0, prompt.places_M] = True
        plain = stock(inputs_embeds=embeds, position_ids=prompt.positions_3P[:, None], visual_pos_masks=mask,
                      deepstack_visual_embeds=list(prompt.video.levels_LMD)).last_hidden_state
        mine = cached_logits(policy, prompt)
        torch.testing.assert_close(mine, policy.language_model.head(plain)[0], atol=1e-5, rtol=0)


REFUSED = [
    (QWEN2, {"text_config.use_sliding_window": True, "text_config.sliding_window": 8,
             "text_config.max_window_layers": 1, "text_config.layer_types": None}, "1 layers of sliding_attention"),
    (QWEN2, {"text_config.use_sliding_window": True, "text_config.sliding_window": 8,
             "text_config.layer_types": ["sliding_attention", "full_attention"]}, "1 layers of sliding_attention"),
    *((family, {"text_config.rope_parameters.rope_type": "dynamic", "text_config.rope_parameters.factor": 2.0},
       "rope_type dynamic; expected one of default, linear, yarn, llama3") for family in FAMILIES),
    *((family, {"text_config.rope_parameters.partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5")
      for family in FAMILIES),
    *((family, {"text_config.rope_parameters.mrope_section": [1, 1, 1]}, "mrope_section") for family in FAMILIES),
    *((family, {"text_config.rope_parameters.mrope_section": None}, "mrope_section") for family in FAMILIES),
    *((family, {"text_config.rope_parameters.rope_theta": 0.0}, "rotary table|not a usable") for family in FAMILIES),
    *((family, {"text_config.rope_parameters.rope_theta": -1.0}, "rotary table|not a usable") for family in FAMILIES),
    (QWEN2, {"text_config.head_dim": 16, "text_config.rope_parameters.mrope_section": [4, 2, 2]},
     "heads that share the width"),
    (QWEN2, {"text_config.rope_parameters.mrope_interleaved": True}, "mrope_interleaved true"),
    (QWEN3, {"text_config.rope_parameters.mrope_interleaved": False}, "mrope_interleaved false"),
    *((family, {"vision_config.temporal_patch_size": 4}, "temporal_patch_size 4; expected 2") for family in FAMILIES),
    *((family, {"vision_config.in_channels": 4}, "in_channels 4; expected 3") for family in FAMILIES),
    *((family, {"vision_config.out_hidden_size": 64}, "out_hidden_size 64; expected 32") for family in FAMILIES),
    *((family, {"vision_config.patch_size": [14, 14]}, "patch_size|not a usable") for family in FAMILIES),
    *((family, {"vision_config.head_dim": 8}, "vision_config.head_dim 8") for family in FAMILIES),
    (QWEN2, {"vision_config.window_size": 14}, "window_size 14"),
    (QWEN3, {"vision_config.num_position_embeddings": 35}, "num_position_embeddings 35; expected a square"),
    (QWEN3, {"vision_config.deepstack_visual_indexes": [0, 0, 1]}, "deepstack_visual_indexes"),
    (QWEN3, {"vision_config.deepstack_visual_indexes": [3, 1, 0]}, "deepstack_visual_indexes"),
    (QWEN3, {"vision_config.deepstack_visual_indexes": [0, 1, 9]}, "deepstack_visual_indexes"),
    *((family, {"text_config.num_key_value_heads": 3}, "key-value heads") for family in FAMILIES),
    *((family, {"text_config.model_type": "llama"}, "model_type of its text_config") for family in FAMILIES),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=str)
def test_what_is_not_computed_is_refused_by_name(made: dict[str, Path], tmp_path: Path, family: str,
                                                 changes: dict[str, Any], message: str) -> None:
    folder = changed(made[family], tmp_path / "x", changes)
    with pytest.raises(ModelError, match=message) as refused:
        load_policy(folder, tower=True)
    assert str(refused.value).startswith(str(folder))


SIZES = ["num_labels", "text_config.num_labels", "text_config.head_dim", "text_config.hidden_size",
         "text_config.num_attention_heads", "text_config.num_key_value_heads", "text_config.vocab_size",
         "text_config.intermediate_size", "text_config.num_hidden_layers", "text_config.max_window_layers",
         "text_config.rope_parameters.mrope_section", "vision_config.spatial_merge_size", "vision_config.patch_size",
         "vision_config.temporal_patch_size", "vision_config.hidden_size", "vision_config.num_heads",
         "vision_config.depth", "vision_config.out_hidden_size", "vision_config.window_size", "vision_config.head_dim",
         "vision_config.tokens_per_second", "vision_config.num_position_embeddings", "vision_config.in_channels",
         "vision_config.fullatt_block_indexes", "vision_config.deepstack_visual_indexes"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_size_out_of_bounds_is_refused_before_transformers_sees_it(
        made: dict[str, Path], tmp_path: Path, family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: pytest.fail("transformers saw it"))
    for number, value in enumerate((10**13, -1, 2**63, True, 1e300, [10**13, 1, 1], [[2] * 9])):
        folder = changed(made[family], tmp_path / str(number), {name: value})
        with pytest.raises(ModelError, match=f"{name} is .*; expected at most"):
            read_config(folder)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_any_other_value_is_one_message_or_a_policy(made: dict[str, Path], tmp_path: Path, family: str,
                                                    name: str) -> None:
    """Or one about weights of another shape."""
    for number, value in enumerate((0, 1, 7, 200, "x", None, {}, [], 1.5)):
        folder = changed(made[family], tmp_path / str(number), {name: value})
        try:
            load_policy(folder, tower=True)
        except ModelError as error:
            assert str(error).startswith(str(folder))


def test_no_table_of_labels_is_made(made: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(made[QWEN2], tmp_path / "x", {"id2label": {str(n): "x" for n in range(20_000)}})
    with pytest.raises(ModelError, match="id2label has 20,000 items"):
        read_config(folder)


KINDS = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "generation_config.json", "processor_config.json", "taro.json", "template.yaml", "x.bin", "vocab.txt",
         "model.safetensors.index.json", "additional_chat_templates/default.jinja"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_pipe_in_a_model_folder_is_named_and_not_opened(made: dict[str, Path], tmp_path: Path, name: str,
                                                          kind: str) -> None:
    folder = Path(shutil.copytree(made[QWEN2], tmp_path / "x"))
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        here = Path.cwd()
        os.chdir(file.parent)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as made_one:
                made_one.bind(file.name)
        finally:
            os.chdir(here)
    with pytest.raises(ModelError, match=f"{file.name}: a pipe, a socket or a device; expected a regular file"):
        load_policy(folder, tower=True)


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


BOMBS: dict[str, dict[str, Any]] = {
    "doubles": {"normalizer": {"type": "Sequence", "normalizers": [replace("aa", String="a")] * 60}},
    "long": {"normalizer": replace("a" * 100_000, String=" ")},
    "empty": {"normalizer": replace("a" * 100, Regex="")},
    "prepends": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "aaa"}] * 40}},
    "decoder": {"decoder": {"type": "Sequence", "decoders": [replace("aa", String="a")] * 60}},
    "nested": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Sequence", "normalizers": [replace("aaaa", String="a")] * 4}] * 4}},
    "unknown": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "no type": {"normalizer": {"x": 1}}, "text": {"normalizer": "NFC"},
    "inserts": {"decoder": {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 30}},
    "of another part": {"decoder": {"type": "Nmt", "pattern": {"String": "a"}, "content": "a" * 9000}},
    "another list": {"decoder": {"type": "Sequence", "normalizers": [],
                                 "decoders": [replace("aa", String="a")] * 60}},
    "another text": {"normalizer": {"type": "Prepend", "content": "a", "prepend": "a" * 9000}},
    "no list": {"normalizer": {"type": "Sequence"}},
    "panics": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "pre": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 4}},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.5.0.0.json"])
def test_a_tokenizer_that_multiplies_a_text_is_never_loaded(made: dict[str, Path], tmp_path: Path, bomb: str, name: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(made[QWEN2], tmp_path / "x"))
    stored = json.loads((folder / "tokenizer.json").read_text())
    (folder / name).write_text(json.dumps({**stored, **BOMBS[bomb]}))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"times longer; expected at most 64|holds a step that is not known"):
        load_policy(folder)


def test_a_tokenizer_elsewhere_is_not_named(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[QWEN2], tmp_path / "x"))
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    stored["fast_tokenizer_files"] = ["../tokenizer.5.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="fast_tokenizer_files"):
        load_policy(folder)


def test_growth_of_decoders_is_at_least_what_the_library_does() -> None:
    from tokenizers import Tokenizer, models

    steps = [{"type": "BPEDecoder", "suffix": ""}, {"type": "Fuse"}, {"type": "ByteFallback"},
             {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
             {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
             {"type": "WordPiece", "prefix": "", "cleanup": False}, replace("xyz", String=""), replace("-", Regex="a*"),
             {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]  # fmt: skip
    stored = json.loads(Tokenizer(models.BPE()).to_str())
    for step in steps:
        made = Tokenizer.from_str(json.dumps({**stored, "decoder": step}))
        for text in ("a b  ab", "a", " ", "\u00ff", "\u2581a", "<0xFF>"):
            assert len(made.decoder.decode([text]).encode()) <= growth(step, "decoder") * len(text.encode()), step


def test_a_panic_of_the_tokenizers_library_is_a_refusal() -> None:
    """It is no Exception; an interrupt, which is none either, goes through."""
    from tokenizers import pre_tokenizers

    with pytest.raises(ModelError, match=r"^x: .*non-zero"), tokenizer_errors(Path("x")):
        pre_tokenizers.FixedLength(0).pre_tokenize_str("ab")
    with pytest.raises(KeyboardInterrupt), tokenizer_errors(Path("x")):
        raise KeyboardInterrupt


def test_growth_is_at_least_what_the_library_does() -> None:
    from tokenizers import normalizers

    steps = [replace("\u2581", String=" "), replace("xyz", String="ab"), {"type": "Prepend", "prepend": "\u2581"},
             {"type": "NFKD"}, {"type": "NFC"}, {"type": "Lowercase"}, {"type": "ByteLevel"}, replace("-", Regex="a*")]
    for step in steps:
        made_of = normalizers.Sequence([])
        state = {"type": "Sequence", "normalizers": [step]}
        made_of.__setstate__(json.dumps(state).encode())
        for text in ("a b  ab", "\ufdfa" * 9, "\u0130\u1e9e", " ", "\u0344"):
            assert len(made_of.normalize_str(text).encode()) <= growth(state) * len(text.encode())
