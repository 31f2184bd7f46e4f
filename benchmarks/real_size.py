"""A whole job at a released model's size, by one command: preprocess, train, resume, export, load by stock classes.

Weights are random and of released shape, videos are real, every command is `taro` in a process of its own. Three steps
with a KL to the start policy, the first one guided; one more after a resume. A reward that is a hash of the response
differs wherever responses do, so that gradients are not zero. What is printed: seconds by phase, tokens per second, the
peak of GPU memory beside what the plan said, the checkpoint's and the export's time, what moved, and whether stock
classes compute the same. Left out: learning anything.

    python benchmarks/real_size.py 7b-lora --videos FOLDER_OF_MP4S --work FOLDER --out RESULTS
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.shapes import write_model  # noqa: E402

CASES: dict[str, tuple[str, str, int, tuple[str, ...]]] = {
    "tiny": ("tiny", "sandbox", 1, ("device=auto", "rollout.prompts=2", "rollout.max_new_tokens=48",
                                    "rollout.min_free_tokens=8")),
    "3b": ("3b", "taro-3b", 1, ()),
    "7b-lora": ("7b", "taro-7b-lora", 1, ()),
    "7b-full": ("7b", "taro-7b", 1, ("optimizer.states=8bit", "reference=host")),
    "8b-lora": ("qwen3-8b", "taro-8b-lora", 1, ()),
    "7b-full-2": ("7b", "taro-7b", 2, ("optimizer.states=8bit", "rollout.prompts=16")),
    "3b-2": ("3b", "taro-3b", 2, ()),
}  # fmt: skip
"""name -> (shape, recipe, GPUs, settings)"""
COMMON = ("length.unit=steps", "curriculum.unit=steps", "curriculum.amount=1", "loss.kl=0.01", "validation.split=null",
          "rollout.max_new_tokens=192", "rollout.prompts=8", "checkpoint.every=100", "checkpoint.keep=1",
          "rollout.paths=random",
          'reward.extra=[["benchmarks.real_size:varies", 1.0]]')  # fmt: skip
QUERIES = 24
LINES = ("a person opens a door", "they walk across the room", "they put something down", "they turn and leave")


def varies(response: Any) -> float:
    """A reward that differs wherever responses do: a hash of the text, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(response.text.encode()).digest()[:6], "big") / 2**48


def annotate(videos: Path, path: Path) -> None:
    """`QUERIES` rows of jsonl over the folder's videos, each with captions to guide with."""
    import av

    rows, files = [], sorted(videos.glob("*.mp4"))
    for number in range(QUERIES):
        file = files[number % len(files)]
        with av.open(str(file)) as container:
            length = float(container.duration or 0) / 1e6
        start = length * (number % 5) / 8
        rows.append({"video": file.name, "query": f"the person does thing {number}",
                     "windows": [[round(start, 1), round(start + length / 4, 1)]],
                     "captions": [{"start_s": round(length * i / 4, 1), "end_s": round(length * (i + 1) / 4, 1),
                                   "text": text} for i, text in enumerate(LINES)]})  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def set_words(*settings: str) -> list[str]:
    """`--set` before each."""
    return [word for setting in settings for word in ("--set", setting)]


class Job:
    """One case: runs its commands, keeps their times."""

    def __init__(self, name: str, work: Path, out: Path) -> None:
        self.name, self.work, self.out = name, work, out
        self.size, self.recipe, self.gpus, self.settings = CASES[name]
        self.made = work.parent / f"{self.size}-made"
        self.result: dict[str, Any] = {"case": name, "seconds": {}}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Seconds of a part, and the word that it began."""
        started = time.monotonic()
        print(f"{self.name}: {name}", file=sys.stderr, flush=True)
        yield
        self.result["seconds"][name] = round(time.monotonic() - started, 1)
        (self.out / f"{self.name}.json").write_text(json.dumps(self.result, indent=1), encoding="utf-8")

    def taro(self, *words: str) -> str:
        """Standard output of a command; its error output goes to OUT. Raises RuntimeError where it fails."""
        log = self.out / f"{self.name}.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ taro {' '.join(words)}\n")
            file.flush()
            path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
            done = subprocess.run([sys.executable, "-m", "taro", *words], stdout=subprocess.PIPE, stderr=file,
                                  text=True, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            raise RuntimeError(f"taro {words[0]}: exit code {done.returncode}\n{log.read_text()[-3000:]}")
        return done.stdout

    def train(self, steps: int, *more: str) -> dict[str, Any]:
        """`taro train --json` up to `steps`."""
        settings = [f"policy={self.made / 'base'}", f"shards={self.made / 'shards'}", f"out={self.work / 'run'}",
                    *COMMON, *self.settings, f"length.amount={steps}"]
        many = ("--gpus", str(self.gpus)) if self.gpus > 1 else ()
        said = self.taro("train", self.recipe, *set_words(*settings), *many, *more, "--json")
        found: dict[str, Any] = json.loads(said)
        return found

    def make(self, videos: Path) -> None:
        """The model and its shard set."""
        with self.timed("write the model"):
            write_model(self.made / "base", self.size, seed=0)
        annotate(videos, self.made / "annotations.jsonl")
        with self.timed("preprocess"):
            self.taro("preprocess", "jsonl", *set_words(
                f"videos={videos}", f"annotations={self.made / 'annotations.jsonl'}", f"out={self.made / 'shards'}",
                f"policy={self.made / 'base'}", "clip_model=null", "segment.method=uniform", "workers=4",
                "caption.method=annotations", "caption.model=null", "max_skipped=1",
                *(("sampling.total_tokens=256",) if self.size.endswith("tiny") else ())))

    def run(self, videos: Path) -> None:
        """All parts in order."""
        for folder in (self.work, self.out, self.made):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.made / "shards" / "manifest.json").exists():  # another case of this size made it
            self.make(videos)
        with self.timed("plan"):
            plan = self.train(4, "--plan", "--memory", "80")
            self.result["plan"] = {key: plan.get(key) for key in ("fits", "peak_phase")} | {
                "peak GiB": round(plan["peak"] / 2**30, 2), "context GiB": round(plan["context"] / 2**30, 2),
                "always GiB": {part: round(size / 2**30, 2) for part, size in plan["always"].items()},
                "phases GiB": {name: {part: round(size / 2**30, 2) for part, size in parts.items()}
                               for name, parts in plan["phases"].items()}}
        with self.timed("train 3 steps and checkpoint"):
            self.train(3)
        with self.timed("resume, 1 step, checkpoint, export"):
            self.train(4, "--resume")
        rows = [json.loads(line) for line in (self.work / "run" / "metrics.jsonl").read_text().splitlines()]
        first = self.work / "run" / "rollouts" / "step-000000.jsonl"
        self.result["rollouts sha256"] = {f"{row['key']}/{row['query_id']}/{row['g']}": hashlib.sha256(
            row["text"].encode()).hexdigest()[:8] for row in map(json.loads, first.read_text().splitlines())}
        self.result["steps"] = [{key: row.get(key) for key in (
            "step", "phase", "reward", "reward_std", "kl", "entropy", "length", "loss", "grad_norm", "logprob_gap",
            "memory_gib", "memory_gib_ranks", "seconds", "phases", "tokens_per_s", "tokens_per_s_by_phase")}
            for row in rows]  # fmt: skip
        shutil.rmtree(self.work / "run" / "checkpoints")  # room for what follows
        with self.timed("compare with the base"):
            self.result["moved"] = moved(self.made / "base", self.work / "run" / "export")
        with self.timed("stock classes"):
            self.result["stock"] = stock(self.work / "run" / "export", self.made / "shards")


def moved(base: Path, export: Path) -> dict[str, Any]:
    """Which tensors of an export differ from the base's, by part, and by how much."""
    import torch
    from safetensors import safe_open

    from taro.models.families import family_of
    from taro.models.folder import read_config
    from taro.models.tensors import places, tensor_files

    family = family_of(read_config(base), base)
    files, ours, found = tensor_files(base), tensor_files(export), places(base, family)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    counts: dict[str, dict[str, float]] = {}
    for name in files:
        part = found[name][0] if name in found else "other"
        one = counts.setdefault(part, {"tensors": 0, "moved": 0, "elements": 0, "changed": 0, "largest": 0.0})
        with safe_open(files[name], "pt", device=where) as file:
            before = file.get_tensor(name)
        with safe_open(ours[name], "pt", device=where) as file:
            after = file.get_tensor(name)
        differ = int((before != after).sum())
        one["tensors"] += 1
        one["moved"] += differ > 0
        one["elements"] += before.numel()
        one["changed"] += differ
        one["largest"] = max(one["largest"], float((before.float() - after.float()).abs().max()))
    return counts


def stock(export: Path, shards: Path) -> dict[str, Any]:
    """The export in a stock class and in taro, both in float32, over the features of one prompt: the largest difference
    of their logits, and the largest logit."""
    import torch
    from transformers import AutoModelForImageTextToText

    from taro.models.asking import ask, asking_of
    from taro.models.attention import causal
    from taro.models.load import load_policy
    from taro.shards.reader import open_shards

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shard_set = open_shards(shards)
    sample = shard_set.sample(shard_set.queries()[0])
    with torch.no_grad():
        policy = load_policy(export, device=where)
        prompt = ask(policy, asking_of(export), sample.features, sample.query.text)
        ids, positions = prompt.ids_P.to(where)[None], prompt.positions_3P.to(where)[:, None]
        lm = policy.language_model
        ours = lm.head(lm(ids, positions, causal, video=prompt.video)[:, -64:])[0].cpu()
        embeds = prompt.video.place(lm.lm.embed_tokens(ids)).cpu()
        deep = [level.cpu() for level in prompt.video.levels_LMD]
        del policy, lm
        torch.cuda.empty_cache()
        model = AutoModelForImageTextToText.from_pretrained(export, dtype=torch.float32).to(where)
        levels = {}
        if deep:
            mask = torch.zeros(ids.shape, dtype=torch.bool, device=where)
            mask[0, prompt.places_M.to(where)] = True
            levels = {"visual_pos_masks": mask, "deepstack_visual_embeds": [level.to(where).float() for level in deep]}
        out = model.model.language_model(inputs_embeds=embeds.to(where), position_ids=positions, use_cache=False,
                                         **levels).last_hidden_state[:, -64:]
        theirs = model.lm_head(out)[0].cpu()
    return {"class": type(model).__name__, "largest difference": float((ours - theirs).abs().max()),
            "largest logit": float(theirs.abs().max()), "prompt tokens": ids.shape[1]}


def table(result: dict[str, Any]) -> str:
    """The result as short lines."""
    lines = [f"{result['case']}: " + ", ".join(f"{name} {seconds} s" for name, seconds in result["seconds"].items())]
    for row in result.get("steps", ()):
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in (row["phases"] or {}).items())
        lines.append(f"  step {row['step']} {row['phase']}: {row['seconds']:.1f} s ({phases}), "
                     f"{row['memory_gib']:.1f} GiB, reward {row['reward']:.3f} +- {row['reward_std']:.3f}, "
                     f"KL {row['kl']:.2e}, gradient {row['grad_norm']:.3g}, gap {row['logprob_gap']:.4f}, "
                     f"{row['length']:.0f} tokens a response")
    lines += [f"  {key}: {json.dumps(result[key])[:1500]}" for key in ("plan", "moved", "stock", "failed")
              if key in result]
    return "\n".join(lines)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    failed = False
    for name in args.cases:
        job = Job(name, args.work / name, args.out)
        try:
            job.run(args.videos.resolve())
        except Exception as error:  # noqa: BLE001  the other cases are worth their time
            job.result["failed"], failed = f"{type(error).__name__}: {error}"[-3000:], True
        shutil.rmtree(job.work, ignore_errors=True)
        print(table(job.result), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
