"""What is fuzzed of a model folder file by file, thousands of times faster than a whole model: config.json,
tokenizer.json, chat templates, weight files and their index (whole folders: fuzz_runs.py).

Checked beyond "no exception": sizes that are accepted are within bounds; a tokenizer that is accepted makes no text
longer than was computed, in the library itself; one template is chosen only where all files agree; every tensor that is
read equals what the library reads from the file that counts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_targets import Files, Target
from taro.core.errors import ModelError
from taro.models import chat_template as chat_template_module
from taro.models.chat_template import SENTINEL, chat_template, render_turn
from taro.models.config_checks import MOST
from taro.models.families import FAMILIES
from taro.models.folder import read_config
from taro.models.tensors import INDEX, WEIGHTS, places, tensor_files, tensors, tower_sha256, weight_files
from taro.models.tokenizer_files import MAX_GROWTH, STEPS, check_tokenizer_files, growth
from tests.helpers_models import TINY, tiny_tokenizer

TEMPLATE_FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja",
                  "additional_chat_templates/default.jinja", "additional_chat_templates/tools.jinja")  # fmt: skip
JINJA = [b"{% for i in range(10**9) %}x{% endfor %}", b"{{ 'x' * 10**9 }}", b"{{ ''.__class__.__mro__ }}",
         b"{% include 'x' %}",
         b"{{ raise_exception('no') }}", b"{{ 1/0 }}", b"{{ strftime_now('%Y') }}",
         b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
         b"{{ messages | tojson }}", b"{{ '\xee\x80\x80' }}", b"{% set x = namespace(self=1) %}", b"<think>\n",
         b"{{ lipsum(99) }}",
         b"{% generation %}{% endgeneration %}", b"{{ messages[9] }}", b"{% break %}", b"{{ '\\ud800' }}",
         b"{{ [0] * 9 ** 9 }}",
         b"{% raw %}", b"<|video_pad|>", b"{{ cycler() }}", b"{% if", b"{{ 9 ** 9 ** 9 }}"]  # fmt: skip
SAMPLES = ("a", "a b  ab", "\ufdfa", "\u0130\u1e9e", " ", "\u0344", "##a<0xFF>\u2581")


def model_targets(seeds: Path) -> list[Target]:
    """The targets of this file; `seeds`: a folder to make good models in."""
    configs = [(TINY[kind](seeds / f"config-{kind}") / "config.json").read_bytes() for kind in FAMILIES]
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    return [
        Target("config-json", lambda rng: {"config.json": _config(rng, rng.choice(configs))}, _read_config, 5),
        Target("tokenizer-json", lambda rng: {"tokenizer.json": _tokenizer(rng, tokenizer)}, _read_tokenizer, 5),
        Target("chat-template", _templates, _choose_template, 10), Target("chat-render", _program, _render, 0.2),
        Target("weight-files", _weights, _read_weights, 5),
    ]  # fmt: skip


def _config(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return change.json_file(rng, data)
    root = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        part = rng.choice([root, root["text_config"], root["vision_config"]])
        key = rng.choice((*MOST, "rope_parameters", "layer_types", "use_sliding_window", "hidden_act", "model_type",
                          "quantization_config", "tie_word_embeddings", "id2label", "dtype",
                          "attention_bias"))  # fmt: skip
        most = MOST.get(key, 1)
        part[key] = rng.choice((most, most + 1, -1, 0, 1, 3, 4, [most], [most + 1] * 3, [1, 2, 5], 1.5, True,
                                {"0": most + 1},
                                change.value(rng)))  # fmt: skip
    return change.dumped(root)


def _read_config(files: Files, folder: Path) -> None:
    (folder / "config.json").write_bytes(files["config.json"])
    read_config(folder)
    for key, value in _entries(json.loads(files["config.json"])):
        sizes = value if isinstance(value, list) else [value]
        assert all(0 <= size <= MOST[key] for size in sizes if type(size) in (int, float)), f"{key}: {value!s:.80}"


def _entries(root: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in root.items():
        if key in MOST:
            yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _step(rng: random.Random, part: str, depth: int = 0) -> Any:
    """A step of a tokenizer: known or not, with settings that fit it, or not."""
    if rng.random() < 0.06:
        return change.value(rng)
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    if depth < 3 and rng.random() < 0.35:
        named = names[part] if rng.random() < 0.9 else rng.choice(list(names.values()))
        return {"type": "Sequence", named: [_step(rng, part, depth + 1) for _ in range(rng.choice((0, 1, 2, 9)))]}
    texts = ("", " ", "a", "\u2581", "##", "</w>", "ab", "\ufdfa", "x" * 9, "x" * 40)
    text = rng.choice(texts)
    pattern = {rng.choice(("String", "Regex")): rng.choice((text, "", "a*", " ", "(", "."))}
    kinds = (
        *STEPS[part],
        *STEPS[part],
        *STEPS["normalizer"],
        *STEPS["decoder"],
        "BertNormalizer",
        "FixedLength",
        "Replace",
        "Replace",
        "Prepend",
        "Append",
        "Precompiled",
        "Sequence",
        "",
    )
    flags = {name: rng.random() < 0.5 for name in (
        "add_prefix_space", "trim_offsets", "use_regex", "cleanup", "split", "invert", "individual_digits", "lowercase",
        "clean_text", "handle_chinese_chars", "strip_accents", "strip_left", "strip_right")}  # fmt: skip
    step = {"type": rng.choice(kinds), "pattern": pattern, "content": text, "prepend": rng.choice(texts),
            "append": text, "prefix": text,
            "suffix": rng.choice(texts), "replacement": rng.choice(("\u2581", "x", text)), "pad_token": text,
            "word_delimiter_token": text,
            "prepend_scheme": rng.choice(("always", "never", "first")), "behavior": rng.choice(("Isolated", "Removed")),
            "delimiter": " ", "length": rng.choice((1, 5, 0)), "start": rng.choice((0, 1)), "stop": rng.choice((0,
                1)), **flags}  # fmt: skip
    if step["type"] == "Strip" and part == "normalizer":
        step.pop("content")
    if rng.random() < 0.1:
        step.pop(rng.choice(list(step)))
    return step


def _tokenizer(rng: random.Random, stored: dict[str, Any]) -> bytes:
    part = rng.choice(("normalizer", "pre_tokenizer", "decoder"))
    data = change.dumped(stored | {part: _step(rng, part)})
    return change.blob(rng, data) if rng.random() < 0.1 else data


def _read_tokenizer(files: Files, folder: Path) -> None:
    from tokenizers import Tokenizer

    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
    check_tokenizer_files(folder)
    stored = json.loads(files["tokenizer.json"])
    try:
        made = Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # noqa: BLE001  as where a policy is loaded
        raise ModelError(f"not a usable model folder: {error!s:.200}") from None
    uses: dict[str, Callable[[str], str]] = {
        "normalizer": lambda text: str(made.normalizer.normalize_str(text)),
        "pre_tokenizer": lambda text: "".join(piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(text)),
        "decoder": lambda text: str(made.decoder.decode([text, text])),
    }
    for part, use in uses.items():
        if getattr(made, part) is None:
            continue
        times = growth(stored.get(part), part)
        assert times <= MAX_GROWTH
        for sample in SAMPLES:
            try:
                after = len(use(sample).encode())
            except Exception as error:  # noqa: BLE001  a pattern that the library cannot run
                raise ModelError(f"the tokenizer cannot be used: {error!s:.200}") from None
            before = len(sample.encode()) * (2 if part == "decoder" else 1)
            assert after <= times * before, (
                f"{part}: {before} bytes became {after}, {times:g} times at most was computed"
            )


def _templates(rng: random.Random) -> Files:
    one = b"{% for m in messages %}{{ m }}{% endfor %}"
    files: Files = {"own": json.dumps(rng.choice((None, None, one.decode(), [{"name": "default", "template": "x"}],
                                                  change.tree(rng, [{"name": "default",
                                                              "template": "x"}])))).encode()}  # fmt: skip
    for name in rng.sample(TEMPLATE_FILES, rng.randrange(4)):
        text = one if rng.random() < 0.7 else change.blob(rng, one)
        if name.endswith(".json"):
            plain = text.decode("utf-8", "replace")
            listed = [{"name": "default", "template": plain}, {"name": "tools", "template": "x"}]
            text = json.dumps({"chat_template": rng.choice((plain, listed))}).encode()
            text = change.json_file(rng, text) if rng.random() < 0.5 else text
        files[name] = text
    return files


def _choose_template(files: Files, folder: Path) -> str:
    from taro.core.json import strict_json

    (folder / "additional_chat_templates").mkdir()
    for name in files.keys() & {*TEMPLATE_FILES}:
        (folder / name).write_bytes(files[name])
    own = json.loads(files["own"].replace(b"@deep@", b""))
    chosen = chat_template(folder, SimpleNamespace(chat_template=own))
    plain = files[TEMPLATE_FILES[2]].decode() if TEMPLATE_FILES[2] in files else None
    said = [] if plain is None else [plain.replace("\r\n", "\n").replace("\r", "\n")]
    for name in TEMPLATE_FILES[:2]:
        value = strict_json(files[name])["chat_template"] if b'"chat_template"' in files.get(name, b"") else None
        said += [value] if isinstance(value, str) else []
    assert isinstance(chosen, str) and all(one == chosen for one in said), f"{chosen!r:.80} of {said!r:.200}"
    return chosen


def _program(rng: random.Random) -> Files:
    template = tiny_tokenizer().chat_template.encode()
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randint(0, len(template))
        template = template[:at] + rng.choice(JINJA) + template[at:]
    return {"a.jinja": change.blob(rng, template) if rng.random() < 0.5 else template}


def _render(files: Files, folder: Path) -> None:
    chat_template_module.DEADLINE_S = 5.0  # a program that never ends is cut after 30 s, longer than a hang here
    template = files["a.jinja"].decode("utf-8", "replace")
    turn = render_turn(
        folder, template, SimpleNamespace(special_tokens_map={"eos_token": "<|im_end|>"}), "<|video_pad|>"
    )
    assert SENTINEL not in turn.before + turn.between and "<|video_pad|>" not in turn.before
    opened = turn.opened(["<|im_end|>", "<|im_start|>"])
    assert opened == "" or (turn.after.endswith(opened) and opened.startswith("<think>"))


def _weights(rng: random.Random) -> Files:
    names = ["model.language_model.layers.0.mlp.up_proj.weight", "model.visual.patch_embed.proj.weight",
             "lm_head.weight",
             "visual.patch_embed.proj.weight", "model.visual.blocks.0.norm1.weight", "x"]  # fmt: skip
    parts = {}
    for number in range(rng.choice((1, 1, 2, 3))):
        dtype = rng.choice((torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.int8))
        parts[f"model-{number}.safetensors"] = save({name: torch.full((2, 3), number).to(dtype)
                                                     for name in rng.sample(names, rng.randrange(1, 4))})  # fmt: skip
    files: Files = dict(parts)
    index = {"weight_map": {name: rng.choice(list(parts)) for name in names}, "metadata": {"total_size": 1}}
    files[INDEX] = (
        change.json_file(rng, json.dumps(index).encode()) if rng.random() < 0.5 else json.dumps(index).encode()
    )
    if rng.random() < 0.3:
        files[WEIGHTS] = files[next(iter(parts))]
    if rng.random() < 0.5:
        name = rng.choice(sorted(name for name in files if name.endswith(".safetensors")))
        files[name] = change.tensors(rng, files[name])
    config = {"model_type": rng.choice(sorted(FAMILIES))}
    if rng.random() < 0.15:
        config |= {"transformers_weights": rng.choice((*parts, INDEX, "../x", change.value(rng)))}
    return files | {"config.json": change.dumped(config)}


def _read_weights(files: Files, folder: Path) -> None:
    root = folder
    for name, data in files.items():
        (root / name).write_bytes(data)
    assert all(file.parent == root for file in weight_files(root))
    by_name, read = tensor_files(root), dict(tensors(root))
    assert read.keys() == by_name.keys()
    for name, tensor in read.items():
        stored = load_file(by_name[name])[name]
        assert stored.dtype == tensor.dtype and torch.equal(stored.view(torch.uint8), tensor.view(torch.uint8))
    family = FAMILIES[json.loads(files["config.json"])["model_type"]]
    assert places(root, family).keys() <= read.keys()
    tower_sha256(root, family)
