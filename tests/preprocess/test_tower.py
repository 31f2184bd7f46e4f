"""Stage 1 loads the policy's tower and nothing else of it; a captioner from the same folder shares that tower."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from taro.models.encoder import load_encoder
from taro.preprocess.captioners.transformers import TransformersCaptioner, model_facts
from taro.preprocess.config import CaptionConfig, PreprocessConfig
from taro.preprocess.run import preprocess
from tests.preprocess.test_run import digests


def test_a_job_never_reads_the_language_model(
        job: Callable[..., PreprocessConfig], tiny_policy: Path, tmp_path: Path) -> None:
    """Made from a folder whose language model is no weights at all, a set is the same to the byte."""
    config = job()
    preprocess(config)
    folder = Path(shutil.copytree(tiny_policy, tmp_path / "half" / tiny_policy.name))
    stored = load_file(folder / "model.safetensors")
    tower = {name: x for name, x in stored.items() if "visual" in name}
    save_file(tower, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "language.safetensors").write_bytes(b"no weights")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
        name: "model.safetensors" if name in tower else "language.safetensors" for name in stored}}))
    other = job(policy=str(folder), out=tmp_path / "other")
    preprocess(other)
    assert digests(config.out) == digests(other.out)


def test_a_captioner_of_the_policy_s_folder_shares_its_tower(tiny_policy: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny_policy)
    link = tmp_path / "link"
    link.symlink_to(tiny_policy)
    copy = Path(shutil.copytree(tiny_policy, tmp_path / "copy"))
    for folder, shared in ((tiny_policy, True), (link, True), (copy, False)):
        config = CaptionConfig(method="transformers", model=str(folder))
        captioner = TransformersCaptioner(config, model_facts(config, True, "float32"), encoder)
        assert (captioner.policy.encoder is encoder) == shared
