"""Model cards of the sandbox's models: what they are, how they were made, what they score, what they are not for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write_cards"]

FAMILY = {"": "Qwen2.5-VL (2.2 million parameters)", "-qwen3-vl": "Qwen3-VL (3.1 million parameters)"}
"""by the ending of a model's name"""

ABOUT = {
    "captioner": (
        "A tiny {family} trained from scratch on synthetic videos to ground queries with every event captioned in its "
        "reasoning, to describe a video or a segment of it, and to say what happens at a time. Its prompts are those "
        "of taro's template `sandbox`."
    ),
    "policy": (
        "A tiny {family}, trained as the captioner and then deliberately weakened: fine-tuned, tower frozen, on "
        "responses of which 60 % hold no caption and the rest a random part of them, whose answers are shifted by up "
        "to 1.5 s at each end and in 30 % of cases name the window of a random event. It has the right form and good "
        "perception, and uses them badly: a start for reinforcement learning, and of no other use."
    ),
    "clip": (
        "A tiny open_clip model (ViT on 84-pixel frames) trained with a sigmoid loss on which of 313 sentences are "
        "true of a single frame: the event that goes on, where objects are, how big they are. Load it with "
        "`open_clip.create_model_and_transforms('local-dir:FOLDER')`."
    ),
}


def write_cards(out: Path, settings: Any, steps: dict[str, int], scores: dict[str, dict[str, float]]) -> None:
    """README.md in each model's folder."""
    for name, values in scores.items():
        rows = [f"| {key} | {value:.3f} |" for key, value in values.items()]
        kind, dash, ending = name.partition("-")
        text = [
            f"# taro sandbox: {name}", "", ABOUT[kind].format(family=FAMILY[dash + ending]), "",
            f"- Data: worlds of seeds {settings.seed * 100_000} to {settings.seed * 100_000 + settings.videos - 1}, "
            "each written as H.264 and read back; nothing was downloaded and no person is shown.",
            f"- Steps: {steps[name]} (seed {settings.seed}); made by `taro sandbox build`, log beside the weights.",
            f"- Scores on {settings.held_out} held-out worlds (greedy; `sampled_`: temperature 1):", "",
            "| measure | value |", "|---|---|", *rows, "", "It knows this one synthetic world and nothing else.", ""]
        (out / name / "README.md").write_text("\n".join(text), encoding="utf-8")
