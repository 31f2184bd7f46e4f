"""Every layout of weights on disk, in both families: the same choice as the installed transformers, and an export that
stock transformers computes with as the trainer does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from taro.core.errors import ModelError
from taro.models.attention import causal
from taro.models.export import export_checkpoint
from taro.models.load import load_policy
from taro.models.policy import Policy
from tests.helpers_models import TINY

IDS = torch.tensor([[65, 40, 7, 90, 33, 12, 201]])
HEAD = "lm_head.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=sorted(TINY))
def untied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied tiny model of a family; layouts are made from its tensors."""
    return TINY[request.param](tmp_path_factory.mktemp(request.param), tied=False)


def embeddings(stored: Tensors) -> str:
    return next(name for name in stored if name.endswith("embed_tokens.weight"))


def renamed(stored: Tensors, *, visual: str, language: str | None = None) -> Tensors:
    def name(old: str) -> str:
        bare = old.removeprefix("model.")
        if bare.startswith("visual."):
            return visual + bare.removeprefix("visual.")
        if language is None or old == HEAD:
            return old
        return language + bare.removeprefix("language_model.")

    return {name(old): tensor for old, tensor in stored.items()}


def write(folder: Path, files: dict[str, Tensors], *, tied: bool, index: dict[str, str] | None = None) -> None:
    """The files, each a mapping of tensors; the index; what config.json says of head and embeddings."""
    (folder / "model.safetensors").unlink()
    for file, content in files.items():
        save_file({name: tensor.clone() for name, tensor in content.items()}, folder / file, metadata={"format": "pt"})
    if index is not None:
        content = {"metadata": {"total_size": 1}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    set_config(folder, tie_word_embeddings=tied)


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    config["text_config"].update({key: values[key] for key in values.keys() & {"tie_word_embeddings", "dtype"}})
    (folder / "config.json").write_text(json.dumps(config))


def halves(stored: Tensors) -> tuple[Tensors, Tensors]:
    names = sorted(stored)
    first = names[: len(names) // 2]
    return {name: stored[name] for name in first}, {name: stored[name] for name in names[len(first) :]}


def one_file(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": stored}, tied=False)


def sharded(folder: Path, stored: Tensors) -> None:
    a, b = halves(stored)
    write(folder, {"model-00001-of-00002.safetensors": a, "model-00002-of-00002.safetensors": b}, tied=False,
          index={**dict.fromkeys(a, "model-00001-of-00002.safetensors"),
                 **dict.fromkeys(b, "model-00002-of-00002.safetensors")})  # fmt: skip


def one_file_and_an_old_index(folder: Path, stored: Tensors) -> None:
    """As left by a save into the folder of a sharded model: the old shards are there too."""
    old = {name: tensor + 1 for name, tensor in stored.items()}
    write(folder, {"model.safetensors": stored, "model-00001-of-00001.safetensors": old}, tied=False,
          index=dict.fromkeys(old, "model-00001-of-00001.safetensors"))


def index_of_the_wrong_files(folder: Path, stored: Tensors) -> None:
    """An index that puts each tensor into the other file, and one tensor into none."""
    a, b = halves(stored)
    write(folder, {"a.safetensors": a, "b.safetensors": b}, tied=False,
          index={**dict.fromkeys(list(a)[1:], "b.safetensors"), **dict.fromkeys(b, "a.safetensors")})


def a_tensor_in_two_files(folder: Path, stored: Tensors) -> None:
    a, b = halves(stored)
    name = sorted(a)[0]
    write(folder, {"a.safetensors": a, "b.safetensors": {**b, name: a[name] * 2}}, tied=False,
          index={**dict.fromkeys(a, "a.safetensors"), **dict.fromkeys(b, "b.safetensors")})


def one_file_beside_others(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": stored, "consolidated.safetensors": {n: t + 1 for n, t in stored.items()},
                   "adapter.safetensors": {"x": torch.ones(2)}}, tied=False)  # fmt: skip


def a_file_that_config_names(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {n: t + 1 for n, t in stored.items()}, "mine.safetensors": stored}, tied=False)
    set_config(folder, transformers_weights="mine.safetensors")


def tied_without_head(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {n: t for n, t in stored.items() if n != HEAD}}, tied=True)


def tied_with_an_equal_head(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {**stored, HEAD: stored[embeddings(stored)]}}, tied=True)


def tied_with_an_equal_head_in_another_file(folder: Path, stored: Tensors) -> None:
    head = {HEAD: stored[embeddings(stored)]}
    rest = {name: tensor for name, tensor in stored.items() if name != HEAD}
    write(folder, {"a.safetensors": rest, "b.safetensors": head}, tied=True,
          index={**dict.fromkeys(rest, "a.safetensors"), HEAD: "b.safetensors"})


def tied_with_another_head(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": stored}, tied=True)


def tied_with_a_head_alone(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {n: t for n, t in stored.items() if n != embeddings(stored)}}, tied=True)


def untied_with_an_equal_head(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {**stored, HEAD: stored[embeddings(stored)]}}, tied=False)


def head_in_float32(folder: Path, stored: Tensors) -> None:
    half = {name: tensor.bfloat16() if name != HEAD else tensor for name, tensor in stored.items()}
    write(folder, {"model.safetensors": half}, tied=False)


def tied_with_an_equal_head_in_float32(folder: Path, stored: Tensors) -> None:
    half = {name: tensor.bfloat16() for name, tensor in stored.items()}
    write(folder, {"model.safetensors": {**half, HEAD: half[embeddings(half)].float()}}, tied=True)


def visual_names(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": renamed(stored, visual="visual.")}, tied=False)


def model_visual_names(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": renamed(stored, visual="model.visual.", language="model.language_model.")},
          tied=False)


def names_without_model(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": renamed(stored, visual="visual.", language="language_model.")}, tied=False)


def a_rotary_table_and_a_value_head(folder: Path, stored: Tensors) -> None:
    """What older trainers saved beside the model."""
    prefix = embeddings(stored).removesuffix("embed_tokens.weight")
    more = {f"{prefix}layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.summary.weight": torch.ones(1, 4)}
    write(folder, {"model.safetensors": {**stored, **more}}, tied=False)


LAYOUTS: tuple[tuple[Callable[[Path, Tensors], None], bool], ...] = (
    (one_file, False), (sharded, False), (one_file_and_an_old_index, False), (index_of_the_wrong_files, False),
    (a_tensor_in_two_files, False), (one_file_beside_others, False), (a_file_that_config_names, False),
    (tied_without_head, True), (tied_with_an_equal_head, True), (tied_with_an_equal_head_in_another_file, True),
    (tied_with_another_head, False), (tied_with_a_head_alone, True), (untied_with_an_equal_head, False),
    (head_in_float32, False), (tied_with_an_equal_head_in_float32, True), (visual_names, False),
    (model_visual_names, False), (names_without_model, False), (a_rotary_table_and_a_value_head, False),
)  # fmt: skip
"""a layout, and whether head and embeddings are one in it"""


def stock(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return model.eval()


def logits(policy: Policy) -> torch.Tensor:
    positions = torch.arange(IDS.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        return policy.language_model.head(policy.language_model(IDS, positions, causal))


def stock_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_every_layout_loads_and_exports_as_transformers_loads_it(untied: Path, tmp_path: Path) -> None:
    stored = load_file(untied / "model.safetensors")
    for layout, one in LAYOUTS:
        folder = Path(shutil.copytree(untied, tmp_path / layout.__name__))
        layout(folder, stored)
        policy, theirs = load_policy(folder, tower=True, trainable=True), stock(folder)
        for mine, other in ((policy.language_model.lm, theirs.model.language_model), (policy.language_model.head,
                            theirs.lm_head), (policy.encoder.tower, theirs.model.visual)):  # fmt: skip
            expected = other.state_dict()
            for name, tensor in mine.state_dict().items():
                assert torch.equal(tensor, expected[name]), (layout.__name__, name)
        is_one = policy.language_model.head.weight is policy.language_model.lm.embed_tokens.weight
        assert is_one == one == (theirs.lm_head.weight is theirs.get_input_embeddings().weight), layout.__name__

        with torch.no_grad():
            for number, parameter in enumerate(policy.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.02)
        check_export(policy, folder, tmp_path / f"{layout.__name__}-export", layout.__name__)


def check_export(policy: Policy, folder: Path, out: Path, name: str) -> None:
    """In float32 the trainer's logits; in a base's bfloat16 those of the weights as rounded, for both programs."""
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    half = any(tensor.dtype != torch.float32 for stored in files for tensor in stored.values())
    if half:
        exact = export_checkpoint(policy, folder, out, dtype=torch.float32)
        torch.testing.assert_close(stock_logits(stock(exact)), logits(policy), msg=lambda text: f"{name}: {text}")
        shutil.rmtree(out)
    theirs = stock(export_checkpoint(policy, folder, out))
    expected = logits(load_policy(out) if half else policy)
    torch.testing.assert_close(stock_logits(theirs), expected, msg=lambda text: f"{name}: {text}")
    one = policy.language_model.head.weight is policy.language_model.lm.embed_tokens.weight
    assert one == (theirs.lm_head.weight is theirs.get_input_embeddings().weight), name
    files = {path.name for path in out.glob("*.safetensors")}
    index = out / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        assert {file: set(load_file(out / file)) for file in files} == {
            file: {key for key, of in weight_map.items() if of == file} for file in set(weight_map.values())}
    else:
        assert len(files) == 1, name
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] == one, name


LEFT = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json", ".env",
        "model.pkl", "adapter_config.json", "adapter_model.safetensors", "old.safetensors", "events.out.tfevents.1",
        "evil.py", "pytorch_model.bin", "wandb/run.log", "global_step10/mp_rank_00_model_states.pt")
TAKEN = ("README.md", "LICENSE", "NOTICE.txt", "merges.txt", "generation_config.json", "preprocessor_config.json",
         "additional_chat_templates/tool_use.jinja", "wording.yaml")


def test_an_export_takes_what_a_model_needs_and_says_what_it_left(
    untied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(untied, tmp_path / "folder"))
    before = {path.name for path in folder.iterdir()} | set(TAKEN) | {"taro.json"}
    for name in (*LEFT, *TAKEN):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    (folder / "taro.json").write_text('{"template": "wording.yaml"}')
    policy = load_policy(folder)
    assert "adapter_config.json: an adapter that is not applied" in caplog.text
    caplog.clear()
    out = export_checkpoint(policy, folder, tmp_path / "out")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == before
    for name in LEFT:
        assert name.partition("/")[0] in caplog.text
    torch.testing.assert_close(stock_logits(stock(out)), logits(policy))


def untied_without_head(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {n: t for n, t in stored.items() if n != HEAD}}, tied=False)


def loose_files(folder: Path, stored: Tensors) -> None:
    a, b = halves(stored)
    write(folder, {"model-00001-of-00002.safetensors": a, "model-00002-of-00002.safetensors": b}, tied=False)


def index_of_a_missing_file(folder: Path, stored: Tensors) -> None:
    write(folder, {"a.safetensors": stored}, tied=False, index={**dict.fromkeys(stored, "a.safetensors"), "x": "b.b"})


def two_names_for_one_tensor(folder: Path, stored: Tensors) -> None:
    tower = renamed(stored, visual="visual.")
    both = {**tower, **renamed(stored, visual="model.visual.")}
    write(folder, {"model.safetensors": both}, tied=False)


def a_layer_too_few(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {n: t for n, t in stored.items() if ".layers.1." not in n}}, tied=False)


def parts_of_processes(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": stored, "shard-00001-model-00001-of-00002.safetensors": stored}, tied=False)


def prefixed(prefix: str) -> Callable[[Path, Tensors], None]:
    return lambda folder, stored: write(folder, {"model.safetensors": {prefix + n: t for n, t in stored.items()}},
                                        tied=False)


def compiled_inside(folder: Path, stored: Tensors) -> None:
    write(folder, {"model.safetensors": {n.replace("layers.", "_orig_mod.layers.", 1): t for n, t in stored.items()}},
          tied=False)


def unmerged_adapter(folder: Path, stored: Tensors) -> None:
    inside = {f"base_model.model.{n}".replace("q_proj.", "q_proj.base_layer."): t for n, t in stored.items()}
    write(folder, {"model.safetensors": {**inside, "base_model.model.x.lora_A.weight": torch.ones(2)}}, tied=False)


def int8_weights(folder: Path, stored: Tensors) -> None:
    name = next(name for name in stored if name.endswith("0.mlp.up_proj.weight"))
    write(folder, {"model.safetensors": {**stored, name: stored[name].to(torch.int8)}}, tied=False)


def fp8_weights(folder: Path, stored: Tensors) -> None:
    name = next(name for name in stored if name.endswith("0.mlp.up_proj.weight"))
    write(folder, {"model.safetensors": {**stored, name: stored[name].to(torch.float8_e4m3fn),
                                         f"{name}_scale_inv": torch.ones(1)}}, tied=False)  # fmt: skip


def awq_names(folder: Path, stored: Tensors) -> None:
    name = next(name for name in stored if name.endswith("0.mlp.up_proj.weight"))
    rest = {other: tensor for other, tensor in stored.items() if other != name}
    write(folder, {"model.safetensors": {**rest, name.replace(".weight", ".qweight"): stored[name].int()}}, tied=False)


def quantised_config(method: str) -> Callable[[Path, Tensors], None]:
    return lambda folder, stored: set_config(folder, quantization_config={"quant_method": method})


def not_a_number(folder: Path, stored: Tensors) -> None:
    name = next(name for name in stored if name.endswith("1.mlp.up_proj.weight") and "visual" not in name)
    bad = stored[name].clone()
    bad[3, 1] = float("nan")
    write(folder, {"model.safetensors": {**stored, name: bad}}, tied=False)


def infinite(folder: Path, stored: Tensors) -> None:
    bad = stored[HEAD].clone()
    bad[-1, -1] = -float("inf")
    write(folder, {"model.safetensors": {**stored, HEAD: bad}}, tied=False)


REFUSED: tuple[tuple[Callable[[Path, Tensors], None], str], ...] = (
    (untied_without_head, r"no lm_head\.weight, and config\.json does not tie"),
    (loose_files, r"no model\.safetensors or model\.safetensors\.index\.json here: it holds safetensors files"),
    (index_of_a_missing_file, r"b\.b is named by the weight index but missing"),
    (two_names_for_one_tensor, "are two names of one tensor"),
    (a_layer_too_few, r"do not fit config\.json"),
    (parts_of_processes, "is a part of a distributed checkpoint"),
    (prefixed("module."), "got module.*, as DistributedDataParallel or DeepSpeed names them"),
    (prefixed("_orig_mod."), r"got _orig_mod.*, as torch\.compile names them"),
    (prefixed("base_model.model."), r"got base_model\.model.*, as peft"),
    (prefixed("policy."), r"got policy\..*, which transformers does not load"),
    (compiled_inside, r"as torch\.compile names them; save the inner model"),
    (unmerged_adapter, r"as peft \(an adapter that is not merged\) names them"),
    (int8_weights, r"quantised weights \(.*up_proj\.weight is I8\)"),
    (fp8_weights, r"quantised weights \(.*up_proj\.weight is F8_E4M3\)"),
    (awq_names, r"quantised weights \(.*\.qweight"),
    (quantised_config("awq"), r"quantised weights \(config\.json: awq\)"),
    (quantised_config("fp8"), r"quantised weights \(config\.json: fp8\)"),
    (not_a_number, r"1\.mlp\.up_proj\.weight holds numbers that are not finite"),
    (infinite, r"lm_head\.weight holds numbers that are not finite"),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_not_the_model_is_named(untied: Path, tmp_path: Path, number: int) -> None:
    layout, message = REFUSED[number]
    folder = Path(shutil.copytree(untied, tmp_path / "folder"))
    layout(folder, load_file(untied / "model.safetensors"))
    with pytest.raises(ModelError, match=message) as refused:
        load_policy(folder)
    assert str(refused.value).startswith(str(folder))


@pytest.mark.parametrize(("prefix", "loads"), [
    ("model.", {"qwen2_5_vl"}), ("model.language_model.", {"qwen2_5_vl", "qwen3_vl"}),
    ("language_model.", {"qwen2_5_vl", "qwen3_vl"}), ("language_model.model.", set()), ("", set()),
])  # fmt: skip
def test_names_are_those_that_transformers_loads(untied: Path, tmp_path: Path, prefix: str, loads: set[str]) -> None:
    from transformers import AutoModelForImageTextToText

    folder = Path(shutil.copytree(untied, tmp_path / "folder"))
    stored = renamed(load_file(untied / "model.safetensors"), visual="model.visual.", language=prefix)
    write(folder, {"model.safetensors": stored}, tied=False)
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    family = json.loads((folder / "config.json").read_text())["model_type"]
    assert (not info["missing_keys"]) == (family in loads)
    if family in loads:
        load_policy(folder)
    else:
        with pytest.raises(ModelError):
            load_policy(folder)
