"""Answers without reasoning, from the first step to the last command: trained, recorded, asked for again, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taro.cli.app import main
from taro.core import draws
from taro.core.config import load_config
from taro.core.errors import ConfigError
from taro.core.jsonl import read_jsonl
from taro.grounding.answers import format_ok
from taro.models.asking import asking_of
from taro.models.export import export_checkpoint
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.open import open_run
from tests.train.conftest import Tiny
from tests.train.tiny import CLIPS, TEMPLATE, clip_record, response

STEPS = 40


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `taro WORDS`."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    code = stopped.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def both_forms(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy, which reasons, taught to answer alone where it is asked to."""
    folder = tmp_path_factory.mktemp("both") / "policy"
    policy = load_policy(tiny.policy, trainable=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(STEPS):
        generator = draws.rng("tiny answers", step)
        number = int(generator.integers(CLIPS))
        for no_think in (True, False):
            texts = [response(s, s + 3) for s in generator.integers(0, 5, size=4)]
            texts = [text[text.index("<answer>") :] if no_think else text for text in texts]
            prompt = policy.prompt(clip_record(number, "train")[1], TEMPLATE.user_text("ab", no_think=no_think))
            ids = torch.tensor([[[*policy.encode_text(text), policy.eos_ids[0]] for text in texts]])
            (-score(policy, [prompt], ids, torch.ones_like(ids, dtype=torch.bool)).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    export_checkpoint(policy, tiny.policy, folder)
    for name in ("template.yaml", "taro.json"):
        (folder / name).write_bytes((tiny.policy / name).read_bytes())
    return folder


def test_trained_recorded_asked_and_compared(both_forms: Path, tiny: Tiny, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path / "run", policy=str(both_forms), length={"amount": 2}, curriculum={"schedule": "off"},
                         reward={"no_think": True, "drop_over": "response"},
                         validation={"split": "val", "max_new_tokens": 48})
    report = train(config)
    steps = [row for row in read_jsonl(config.out / "metrics.jsonl") if "reward" in row]
    rows = [row for step in range(2) for row in read_jsonl(config.out / "rollouts" / f"step-{step:06d}.jsonl")]
    assert sum(row["format"] for row in rows) > len(rows) / 2 and all(row["no_drop"] == 0 for row in steps)
    for row in rows:
        assert row["format"] == float(format_ok(row["text"], no_think=True)) and not row["guided"]
        assert row["drop"] is not None  # over the response
    exported = json.loads((report.export / "taro.json").read_text())
    assert exported["no_think"] is True and asking_of(report.export).no_think
    assert not asking_of(both_forms).no_think and asking_of(both_forms, no_think=True).no_think

    ask = ["eval", "--policy", str(report.export), "--shards", str(tiny.shards), "--max-new-tokens", "64",
           "--device", "cpu", "--json"]
    found = {}
    for words in ((), ("--think",), ("--both",)):
        code, out, _ = run(capsys, *ask, *words)
        assert code == 0
        found[words] = json.loads(out)
    alone, reasoned = found[()], found["--think",]
    assert (alone["no_think"], alone["timestamps"]) == (True, None)  # as it was trained, with no option
    assert reasoned["no_think"] is False and reasoned["timestamps"] is not None
    assert alone["tokens"] < reasoned["tokens"]
    assert found["--both",] == {"think": reasoned, "no_think": alone}
    table = run(capsys, *ask[:-1], "--both")[1].splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["mIoU", "think", "no"]
    assert f"{100 * alone['miou']:.1f}" in table[2]


def test_drops_count_over_what_there_is(both_forms: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sensitivity", "--policy", str(both_forms), "--shards", str(tiny.shards), "--limit", "1", "--group", "2",
           "--kinds", "patch", "--radius", "3", "--boundary", "both", "--max-new-tokens", "48", "--device", "cpu",
           "--no-think", "--json"]
    told = json.loads(run(capsys, *ask)[1])
    assert (told["no_think"], told["over"]) == (True, "response")
    code, _, said = run(capsys, *ask, "--over", "reasoning")
    assert code == 1 and "no reasoning whose drop" in " ".join(said.split())


def test_what_says_neither_yes_nor_no_is_refused(both_forms: Path) -> None:
    said = both_forms / "taro.json"
    kept = said.read_text()
    said.write_text('{"template": "template.yaml", "no_think": "maybe"}')
    try:
        with pytest.raises(ConfigError, match="'maybe'; expected true or false"):
            asking_of(both_forms)
    finally:
        said.write_text(kept)


def test_a_template_without_the_mode_is_told_before_the_folder_is_begun(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "reasons.yaml").write_text(TEMPLATE.model_copy(update={"no_think_text": None}).model_dump_json())
    config = tiny.config(tmp_path / "run", template=str(tmp_path / "reasons.yaml"), curriculum={"schedule": "off"},
                         reward={"no_think": True, "drop_over": "response"})
    with pytest.raises(ConfigError, match="template tiny has no no_think_text; add one"):
        open_run(config, resume=False)
    assert not config.out.exists()


def test_the_flag_is_three_settings() -> None:
    from taro.cli.train import NO_THINK

    config = load_config(TrainConfig, "taro-7b", ["policy=P", "shards=S", "out=O", *NO_THINK],
                         package="taro.train.recipes")
    assert (config.reward.no_think, config.reward.drop_over, config.curriculum.schedule) == (True, "response", "off")
