"""Qwen3-VL through the whole of taro: worlds, shards with deepstack levels, training that stops and goes on, an export.

The quickstart's other family; what the stages do for both is tested where they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from taro.cli.quickstart_run import Quickstart, run_quickstart
from taro.models.attention import causal
from taro.models.load import load_policy
from taro.sandbox import weights_folder
from taro.sandbox.video import decode_cells
from taro.shards.reader import open_shards
from taro.train.config import TrainConfig
from taro.train.loop import train
from tests.report.test_quickstart import Quiet

FOLDER = weights_folder("policy-qwen3-vl")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("second") / "out"
    settings = Quickstart(out=out, steps=2, train_videos=4, held_out_videos=2, family="qwen3_vl")
    return out, run_quickstart(settings, Quiet())


@pytest.mark.slow
def test_the_shards_give_the_logits_of_the_mp4_through_the_stock_model(done: tuple[Path, dict[str, Any]]) -> None:
    """The prompt's ids too: true times of the frames that preprocessing chose, as the stock processor writes them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import VideoMetadata

    out, _ = done
    shard_set = open_shards(out / "shards" / "held-out")
    assert [name.split("-")[0] for name in shard_set.encoders] == ["qwen3_vl"]
    sample = shard_set.sample(shard_set.queries()[0])
    assert len(sample.features.deepstack_LSND) == 3
    policy = load_policy(FOLDER)
    prompt = policy.prompt(sample.features, "when does it happen?")
    frames = decode_cells(out / "worlds" / "held-out" / "videos" / sample.clip.video.path_hint)
    indices = [round(time_s * 8) for time_s in sample.clip.times_s]
    processor = AutoProcessor.from_pretrained(FOLDER)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "when does it happen?"}]}]
    inputs = processor(
        text=[processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)],
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt",
        video_metadata=[VideoMetadata(total_num_frames=sample.clip.video.frames, fps=8.0, frames_indices=indices)],
    )  # fmt: skip
    assert inputs["input_ids"][0].tolist() == prompt.ids_P.tolist()
    stock = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = stock(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"],
                      video_grid_thw=inputs["video_grid_thw"], position_ids=prompt.positions_3P[:, None]).logits[0]
        hidden = policy.language_model(prompt.ids_P[None], prompt.positions_3P[:, None], causal, video=prompt.video)
    assert float(plain.std()) > 1
    torch.testing.assert_close(policy.language_model.head(hidden)[0], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_training_that_stops_goes_on_bit_for_bit_and_its_export_loads_unedited(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    out, result = done
    whole = (out / "run" / "metrics.jsonl").read_text().splitlines()
    base = TrainConfig.model_validate_json(json.dumps(_settings(out / "run", tmp_path / "run")))
    with pytest.raises(KeyboardInterrupt):
        train(base, on_step=_stop)
    train(base, resume=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [_numbers(line) for line in lines] == [_numbers(line) for line in whole]
    export = Path(result["checkpoint"])
    ours, again = (load_policy(folder) for folder in (export, tmp_path / "run" / "export"))
    assert all(torch.equal(a, b) for (_, a), (_, b) in
               zip(ours.named_parameters(), again.named_parameters(), strict=True))  # fmt: skip
    model, start = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (export, FOLDER))
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    tower = start.model.visual.state_dict()
    assert all(torch.equal(tensor, tower[name]) for name, tensor in model.model.visual.state_dict().items())
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def _settings(run: Path, out: Path) -> dict[str, Any]:
    import yaml

    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    settings["out"], settings["checkpoint"]["every"] = str(out), 1
    return settings


def _stop(line: dict[str, Any]) -> None:
    if line.get("step") == 1:
        raise KeyboardInterrupt


def _numbers(line: str) -> dict[str, Any]:
    """What must repeat: all but clocks and memory."""
    clocks = {"seconds", "phases", "tokens_per_s_by_phase", "tokens_per_s", "memory_gib"}
    return {key: value for key, value in json.loads(line).items() if key not in clocks}
