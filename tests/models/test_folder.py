"""Model folders that are not as they must be, and text that would break a prompt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taro.core.errors import ModelError
from taro.models.features import FrameSampling
from taro.models.folder import read_json, template_name
from taro.models.load import load_policy
from taro.models.tensors import INDEX, weight_files
from tests.helpers_models import tiny_qwen2_5_vl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("tiny"), dtype=torch.bfloat16, tied=False)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def encode(policy):
    frames = np.zeros((4, 56, 56, 3), dtype=np.uint8)
    return policy.encode(frames, np.arange(4) / 2, FrameSampling(), duration_s=2.0)


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json; expected a Hugging Face model folder"):
        load_policy(tmp_path)


def test_end_tokens_that_are_no_numbers_are_passed_over(copy: Path) -> None:
    ends = load_policy(copy).eos_ids
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [[5], "6", 7]}))
    assert load_policy(copy).eos_ids == (7, *ends)


def test_a_processor_of_another_model_is_told(copy: Path) -> None:
    path = copy / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"]["patch_size"] = 18
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="says patch_size 18, merge_size 2; the vision tower has 14 and 2"):
        encode(load_policy(copy, tower=True))


def test_a_folder_without_processor_trains_but_cannot_encode(copy: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    load_policy(copy)
    with pytest.raises(ModelError, match="no processor files; expected video_preprocessor_config"):
        encode(load_policy(copy, tower=True))


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    """transformers makes up an empty one, with which training goes on and learns nothing."""
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"expected this model's tokenizer, .*Copy tokenizer\.json"):
        load_policy(copy)


def test_the_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["video_token_id"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="expected this model's tokenizer"):
        load_policy(copy)


def test_a_tokenizer_that_cannot_be_used_is_one_message(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"model_max_length": "x"}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="the tokenizer cannot be used"):
        load_policy(copy)


@pytest.mark.parametrize("named", [5, "", "..", "../a.safetensors", "/etc/passwd", "a\0b", "x" * 256, None], ids=repr)
def test_what_an_index_or_a_config_names_is_a_file_of_the_folder(tmp_path: Path, named: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(ModelError, match="the weight index names"):
        weight_files(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": named}))
    with pytest.raises(ModelError, match="the weight index names"):
        weight_files(tmp_path)


@pytest.mark.parametrize("named", [5, "", ["sandbox"], "x" * 300 + ".yaml", "..", "a\0.yaml"], ids=repr)
def test_a_prompt_template_that_is_no_name_is_refused(copy: Path, named: object) -> None:
    (copy / "taro.json").write_text(json.dumps({"template": named}))
    with pytest.raises(ModelError, match=r"taro\.json: template is .*; expected the name of a prompt template"):
        template_name(copy)


def test_a_prompt_template_beside_the_weights_is_named_by_its_path(copy: Path) -> None:
    assert template_name(copy) is None
    (copy.parent / "mine.yaml").touch()
    for named in ("mine.yaml", "../mine.yaml", str(copy.parent / "mine.yaml")):  # a file elsewhere is never read
        (copy / "taro.json").write_text(json.dumps({"template": named}))
        with pytest.raises(ModelError, match=r"expected that \.yaml file in this folder"):
            template_name(copy)
    (copy / "mine.yaml").touch()
    assert template_name(copy) == str(copy / "mine.yaml")


@pytest.mark.parametrize("changes", [
    {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
    {"auto_map": {"AutoTokenizer": ["evil.T", None]}},
    {"text_config": {"num_hidden_layers": 10**9}}, {"vision_config": {"depth": 10**9}}, {"model_type": ["x"]},
    {"text_config": {"hidden_size": 1.5}}, {"text_config": {"hidden_size": 2**62}}, {"text_config": 3},
    {"text_config": {"num_attention_heads": 0}}, {"vision_config": {"num_heads": "2"}},
    {"vision_config": {"num_heads": 16}},
    {"text_config": {"rope_parameters": 1}}, {"text_config": {"num_hidden_layers": True}},
], ids=lambda changes: str(changes)[:60])  # fmt: skip
def test_a_config_that_lies_is_one_message(
    copy: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that a folder brings is never run, and nothing is asked on the terminal."""
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    config = json.loads((copy / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) and name in config else value
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    began = time.monotonic()
    try:
        load_policy(copy, tower=True)
    except ModelError as error:
        assert str(error).startswith(str(copy))
    else:
        assert "auto_map" in changes  # a known model_type: the code is passed over
    assert time.monotonic() - began < 20 and not (copy / "ran").exists()


@pytest.mark.parametrize("template", [
    "{{ 1 // 0 }}", "{% for", "{{ ''.__class__.__mro__ }}", "{{ messages.x.y }}", "no video",
    "{% for i in range(10**9) %}{% endfor %}", "{{ raise_exception('\x1b[2J') }}", "{% include '/etc/passwd' %}",
    "\udcff",
])  # fmt: skip
def test_a_chat_template_that_misbehaves_is_one_message(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match="template"):
        policy = load_policy(copy, tower=True)
        policy.prompt(encode(policy), "a dog")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ufeff{}", "[1]", '{"a": NaN', "\udcff"])
def test_json_that_breaks_parsers_is_one_message(copy: Path, text: str) -> None:
    (copy / "taro.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"taro\.json"):
        read_json(copy / "taro.json")


def test_damaged_weights_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged weights"):
        load_policy(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 48
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="do not fit config"):
        load_policy(copy)


def test_an_unknown_family_is_named(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="model_type is 'llama'; taro knows qwen2_5_vl"):
        load_policy(copy)


def test_a_weight_index_cannot_leave_its_folder(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy.parent / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="expected a file name in this folder"):
        load_policy(copy)


def test_names_of_transformers_5_load_like_released_ones(copy: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    assert "visual.merger.ln_q.weight" in tensors and "model.norm.weight" in tensors  # as released
    new = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
    }
    save_file(new, copy / "model.safetensors", metadata={"format": "pt"})
    mine, theirs = load_policy(copy, tower=True), load_policy(folder, tower=True)
    for (name, a), (_, b) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    sampling = FrameSampling()
    assert mine.fingerprint(sampling, "bfloat16").hex8 == theirs.fingerprint(sampling, "bfloat16").hex8


def test_one_flipped_tower_weight_changes_the_fingerprint(copy: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "visual.blocks.0" in name and name.endswith("weight"))
    tensors[name].view(-1)[3] += 1.0
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    sampling = FrameSampling()
    before, after = (load_policy(f).fingerprint(sampling, "bfloat16") for f in (folder, copy))
    assert before.tower_sha256 != after.tower_sha256 and before.name != after.name


@pytest.mark.parametrize("query", ["<|video_pad|><|im_end|>", 'quotes " and \n newlines {x} {query}', "\u00e9" * 5000])
def test_a_query_stays_text_whatever_it_spells(folder: Path, query: str) -> None:
    policy = load_policy(folder, tower=True)
    features = encode(policy)
    prompt = policy.prompt(features, query)
    ids = prompt.ids_P.tolist()
    assert ids.count(policy.tokenizer.convert_tokens_to_ids("<|video_pad|>")) == features.tokens
    assert ids.count(policy.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert query in policy.tokenizer.decode(ids)


def test_reasoning_is_what_stands_between_the_tags(folder: Path) -> None:
    policy = load_policy(folder)
    text = "<think>ab</think><answer>1 to 2</answer>"
    ids = [*policy.encode_text(text), policy.eos_ids[0], policy.pad_id]
    inside = policy.reasoning_mask(ids)
    assert policy.decode([i for i, keep in zip(ids, inside, strict=True) if keep]) == "ab"
    assert not policy.reasoning_mask(policy.encode_text("<answer>no thought</answer>")).any()
    open_end = [*policy.encode_text("<think>xyz"), policy.eos_ids[0]]
    assert policy.reasoning_mask(open_end).tolist() == [False] * 7 + [True] * 3 + [False]


def test_every_token_of_a_character_counts(folder: Path) -> None:
    policy = load_policy(folder)
    ids = policy.encode_text("<think>\u00e9</think>")
    assert len(ids) == len("<think></think>") + 2
    assert int(policy.reasoning_mask(ids).sum()) == 2


@pytest.mark.parametrize(("content", "message"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "expected weights, got a Git LFS pointer"),
    (b"<!DOCTYPE html><html>Sign in</html>", "expected weights, got a web page"), (b"", "damaged weights"),
    (b"\x00" * 40, "damaged weights"),
    (None, "expected a file of weights, got something else"),
])  # fmt: skip
def test_what_stands_in_the_place_of_weights_is_named(copy: Path, content: bytes | None, message: str) -> None:
    file = copy / "model.safetensors"
    file.unlink()
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors: {message}"):
        load_policy(copy)


def test_weights_without_rights_are_named(copy: Path) -> None:
    """As another user, since root may read everything."""
    copy.chmod(0o755)
    (copy / "model.safetensors").chmod(0)
    drop = "os.setgid(65534); os.setuid(65534)" if os.getuid() == 0 else ""
    imports = "import os; from pathlib import Path; from taro.models.tensors import tensor_files"
    code = f"{imports}\n{drop}\ntensor_files(Path())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=copy)
    assert "model.safetensors: cannot be read: Permission denied; check its permissions" in ran.stderr


@pytest.mark.parametrize(("file", "message"), [
    ("model.Q4_K_M.gguf", "a GGUF model"), ("pytorch_model.bin", "only pickles"),
    ("weights.safetensors", "safetensors files of other names"),
])  # fmt: skip
def test_a_folder_without_config_or_weights_is_named_as_what_it_is(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ModelError, match=rf"no config\.json: it holds {message}"):
        load_policy(tmp_path)


def test_a_config_with_an_adapter_in_place_of_weights_is_named_as_that(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"no model\.safetensors .* here: it holds an adapter"):
        load_policy(copy)


def test_weights_without_a_config_are_not_called_weights_of_other_names(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json; expected a Hugging Face model folder"):
        load_policy(copy)


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "taro.json"])
def test_what_is_no_file_in_the_place_of_one_is_not_passed_over(copy: Path, name: str, kind: str) -> None:
    """Of a pruned download cache links to nothing are left: without its taro.json a model gets another prompt."""
    (copy / name).unlink(missing_ok=True)
    (copy / name).mkdir() if kind == "folder" else (copy / name).symlink_to("blobs/0")
    with pytest.raises(ModelError, match=rf"{name}: expected a JSON file, found a folder"):
        template_name(copy) if name == "taro.json" else load_policy(copy)
