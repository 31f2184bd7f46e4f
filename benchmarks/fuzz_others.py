"""What is fuzzed besides shard sets and folders of runs and models: annotations, predictions, responses, YAML, state.

Seeds are small files as the other parts of taro write them; whatever a user may download or be sent is here.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_targets import Files, Target
from taro.annotations import DATASETS, import_annotations
from taro.annotations.charades_sta import read_lengths
from taro.core.config import digest, load_config
from taro.core.errors import TaroError
from taro.grounding.answers import ANSWER_PARSERS, format_ok, parse_answer, parse_reasoning
from taro.grounding.prompts import load_template, parse_captions
from taro.metrics.predictions import Annotations, compare_files, evaluate_file
from taro.pages.answers import answers_page
from taro.preprocess.captioners.cache import CaptionCache
from taro.preprocess.captioners.imported import captions_file
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.ledger import read_ledger
from taro.preprocess.plan import load_plan
from taro.train.config import TrainConfig

QUERY = {"video": "v", "query": "a dog", "windows": [[1.0, 2.5]], "duration": 9.0, "qid": 3, "split": "val",
         "clip": [0, 9], "difficulty": 20, "captions": [{"start_s": 0, "end_s": 1, "text": "x"}]}  # fmt: skip
QV = {"qid": 1, "query": "q", "vid": "a_0.0_150.0", "duration": 150, "relevant_windows": [[0, 10]],
      "relevant_clip_ids": [0, 1], "saliency_scores": [[1, 2, 3], [4, 0, 1]]}  # fmt: skip
AUTHORS = {"data_source": "x", "prompt": [{"role": "user", "content": 'find "a dog"'}], "videos": ["a_1_9.mp4"],
           "video_start": 1, "video_end": 9, "reward_model": {"ground_truth": [1, 2]}, "query": "a dog",
           "captions": "From 0.0s to 6.5s, a woman types", "extra_info": {"split": "test", "index": 4, "duration": 9}}
SEEDS: dict[str, tuple[Any, str]] = {
    "charades-sta": ("3MSZA 24.3 30.4##person turn a light on.\nAB 0 1##x", "text"),
    "jsonl": ([QUERY, QUERY], "lines"), "sandbox": ([QUERY], "lines"),
    "activitynet": ({"v_a": {"duration": 82.7, "timestamps": [[0.8, 19.9], [17, 60]], "sentences": ["a", "b"]}},
                    "json"),
    "qvhighlights": ([QV, QV], "lines"), "taro-eval": ([QV | {"video_start": 0, "video_end": 9}], "lines"),
    "tvgbench": ([{"video": "a.mp4", "sentence": "x", "timestamp": [1, 2], "duration": 3, "video_start": 0,
                   "video_end": 3, "qid": 1}], "json"),
    "time-r1": ([{"video": "a", "sentence": "x", "timestamp": [1, 2], "duration": 9, "qid": "q", "difficulty": 5,
                  "video_start": 0, "video_end": 9}], "json"),
    "taro": ([AUTHORS], "json"),
    "timelens": ({"a": {"source": "x", "duration": 30.5, "spans": [[1, 2]], "queries": ["x"],
                        "timestamps": [[1, 2]], "sentences": ["x"]}}, "json"),
}  # fmt: skip
RESPONSE = ("<think>\nI look.\nFrom 2.0s to 5.5s, a dog barks\nat 00:12 to 00:15, between 1.5 and 2.5 s\n</think>\n"
            "<answer>2.00s to 5.50s</answer>")  # fmt: skip
ANSWERS = [{"query_id": "3", "text": RESPONSE}, {"qid": 2, "predicted": [1.0, 2.0], "reasoning": "at 1.0s"},
           {"qid": "x", "pred_relevant_windows": [[1, 2, 0.5]], "pred_saliency_scores": [0.1, 2]},
           {"video": "v", "query": "a dog", "predicted": None}]  # fmt: skip


def other_targets(seeds: Path) -> list[Target]:
    """The targets of this file; `seeds`: a folder to make good files in."""
    return [*(_annotations(name, *SEEDS[name]) for name in DATASETS), *_text_targets(), *_yaml_targets(seeds),
            *_state_targets()]


def _annotations(name: str, seed: Any, kind: str) -> Target:
    if kind == "text":
        data, changer = seed.encode(), change.blob
    elif kind == "lines":
        data, changer = b"\n".join(json.dumps(row).encode() for row in seed), change.json_lines
    else:
        data, changer = json.dumps(seed).encode(), change.json_file

    def run(files: Files, folder: Path) -> None:
        path = folder / "annotations"
        path.write_bytes(files["annotations"])
        report = import_annotations(path, dataset=name)
        assert report.counts["lines"] == sum(report.counts[k] for k in ("kept", "repaired", "dropped"))
        assert _visible(report.table()) and json.dumps(report.as_dict())
        for policy in ("drop", "fail"):
            with contextlib.suppress(TaroError):
                import_annotations(path, dataset=name, policy=policy)

    return Target(f"{name}", lambda rng: {"annotations": changer(rng, data)}, run, 3)


def _visible(text: str) -> bool:
    """Whether a text can be printed on a terminal as it is."""
    return all(char.isprintable() or char == "\n" for char in text)


def _text_targets() -> list[Target]:
    answers = b"\n".join(json.dumps(row).encode() for row in ANSWERS)
    truth = "\n".join(json.dumps(QUERY | {"qid": qid}) for qid in (2, "3", "x"))

    def score(files: Files, folder: Path) -> None:
        (folder / "answers").write_bytes(files["answers"])
        (folder / "good").write_bytes(answers)
        (folder / "truth").write_text(truth)
        annotations = Annotations(folder / "truth", "jsonl")
        for protocol in ANSWER_PARSERS:
            found = evaluate_file(folder / "answers", annotations, protocol=protocol)
            assert json.dumps(found.as_dict()) and _visible(found.table()), "a table that moves the cursor"
            answers_page(found.examples, scores=found.scores, table=found.table(), protocol=protocol)
        compare_files(folder / "answers", folder / "good", annotations)

    def read(files: Files, _: Path) -> None:
        text = files["response"].decode("utf-8", "replace")
        for protocol in ANSWER_PARSERS:
            parse_answer(text, protocol=protocol)
        parse_reasoning(text)
        parse_captions(text)
        format_ok(text)

    def lengths(files: Files, folder: Path) -> None:
        (folder / "lengths.csv").write_bytes(files["lengths.csv"])
        read_lengths(folder / "lengths.csv")

    return [
        Target("predictions", lambda rng: {"answers": change.json_lines(rng, answers)}, score, 2),
        Target("responses", lambda rng: {"response": change.blob(rng, RESPONSE.encode() * rng.choice((1, 1, 30)))},
               read, 10),
        Target("lengths", lambda rng: {"lengths.csv": change.blob(rng, b'id,length\n"A",1.5\nB,30\n')}, lengths, 3),
    ]


def _yaml_targets(seeds: Path) -> list[Target]:
    from importlib import resources

    def packaged(package: str) -> list[bytes]:
        return [f.read_bytes() for f in resources.files(package).iterdir() if f.name.endswith(".yaml")]

    def target(name: str, recipes: list[bytes], load: Callable[[Path, Sequence[str]], Any], share: float) -> Target:
        def make(rng: random.Random) -> Files:
            data = rng.choice(recipes)
            return {"a.yaml": _yaml(rng, data, recipes), "set": change.blob(rng, b"loss.kl=0.1")}

        def run(files: Files, folder: Path) -> None:
            (folder / "a.yaml").write_bytes(files["a.yaml"])
            with contextlib.suppress(TaroError):
                load(folder / "a.yaml", [files["set"].decode("utf-8", "replace")])
            digest(load(folder / "a.yaml", []))

        return Target(name, make, run, share)

    wanted = {PreprocessConfig: ["out=x", "videos=x", "annotations=x"], TrainConfig: ["out=x", "policy=x", "shards=x"]}
    recipes = {PreprocessConfig: "taro.preprocess.recipes", TrainConfig: "taro.train.recipes"}
    configs = [target(f"config-{package.partition('.')[0]}", packaged(package),
                      lambda path, sets, model=model, package=package: load_config(
                          model, path, [*wanted[model], *sets], package=package), 2)
               for model, package in recipes.items()]  # fmt: skip
    return [target("template", packaged("taro.grounding.templates"), lambda path, _: load_template(path), 2), *configs]


def _yaml(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    import yaml

    kind = rng.random()
    if kind < 0.5:
        return change.blob(rng, data, others)
    if kind < 0.6:  # aliases of aliases
        levels = "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(rng.choice((3, 9, 25))))
        return b"a0: &a0 [x, x]\n" + levels.encode() + rng.choice((b"", b"\nname: *a3\n", b"\ntext: *a9\n"))
    root = change.tree(rng, yaml.safe_load(data) or {})
    try:
        return yaml.safe_dump(root, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, UnicodeError):
        return b"- " * 3000


def _state_targets() -> list[Target]:
    """Files that taro keeps for itself beside a set or that come with captions of others."""
    caption = json.dumps({"video": "v", "captions": [{"start_s": 0, "end_s": 1.5, "text": "x"}]}).encode()
    line = json.dumps({"question": "0" * 64, "text": "From 0.0s to 2.5s, a dog barks"}).encode()
    ledger = json.dumps({"plan_sha256": "0", "written": 1, "clips": 1, "captions": 0, "skipped": [
        {"row_id": "1", "line": 1, "stage": "plan", "reason": "x"}]}).encode()  # fmt: skip

    def captions(files: Files, folder: Path) -> None:
        (folder / "captions.jsonl").write_bytes(files["captions.jsonl"])
        captions_file(folder / "captions.jsonl")

    def journal(files: Files, folder: Path) -> None:
        (folder / "captions-000000.jsonl").write_bytes(files["captions-000000.jsonl"])
        known = CaptionCache(folder)
        known.add(1, [("q", "a")])
        assert known.get("q") == "a"

    def ledgers(files: Files, folder: Path) -> None:
        for name in ("ledger/slice-000000.json", ".preprocess/plan.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(files["ledger.json"])
        with contextlib.suppress(TaroError):
            load_plan(folder)
        read_ledger(folder, 0)

    return [
        Target("captions-file", lambda rng: {"captions.jsonl": change.json_lines(rng, caption + b"\n" + caption)},
               captions, 3),
        Target("journal", lambda rng: {"captions-000000.jsonl": change.json_lines(rng, line + b"\n" + line)}, journal,
               2),
        Target("ledger", lambda rng: {"ledger.json": change.json_file(rng, ledger)}, ledgers, 2),
    ]
