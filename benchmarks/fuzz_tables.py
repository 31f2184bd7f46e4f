"""What is fuzzed of the readers of tables and texts: csv, tsv, parquet and JSON through `hf`, every format in other
encodings and forms, captions, lengths, lists of names, names of videos, and words on the command line.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_targets import Files, Target
from taro.annotations import import_annotations
from taro.annotations.charades_sta import read_lengths
from taro.cli import config as config_command
from taro.core.config import digest, load_config, read_yaml
from taro.core.errors import ConfigError, TaroError
from taro.core.settings import settings_of
from taro.core.text_files import read_text
from taro.metrics.predictions import read_responses
from taro.preprocess.captioners.imported import captions_file
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.listing import Finder, list_videos
from taro.train.config import TrainConfig

ROW = {"video": "a.mp4", "query": "a dog, \"it\" barks", "start": 1.0, "end": 2.5, "windows": None, "duration": 9.0,
       "qid": 3, "split": None, "clip": None, "difficulty": 20, "captions": None}  # fmt: skip
CAPTIONS = [{"video": "a.mp4", "captions": [{"start_s": 0, "end_s": 1.5, "text": "caf\u00e9"}]},
            {"video": 7, "captions": None}]  # fmt: skip
ANSWERS = [{"query_id": "3", "predicted": [1.0, 2.0]}, {"video": 7, "query": "a dog", "text": "1.0s to 2.0s"}]
NAMES = ["a.mp4", "sub/a.mp4", "b", "sub\\b.mp4", "Caf\u00e9.mp4", "x//y/./a.mp4", "../a.mp4", "/a.mp4", "a.mkv",
         ".", "a..b", "s/"]  # fmt: skip
WORDS = ["a: b", "a #b", "*a", "&a", "!!int 3", "{a: 1}", "[1, 2]", "2024-01-01", "1e-6", "010", "12:30", "on", "null",
         "'a'", '"a', "- a", "<<", "=", "~", "a=b", "\u00e9"]  # fmt: skip


def table_targets(seeds: Path) -> list[Target]:
    """The targets of this file; `seeds`: a folder to make good files in."""
    return [*(_table(end) for end in (".csv", ".tsv", ".json", ".jsonl")), _parquet(seeds), _texts(),
            _forms("captions-forms", CAPTIONS, captions_file), _forms("answers-forms", ANSWERS, read_responses),
            _forms("jsonl-forms", [ROW, ROW], lambda path: _import(path, "jsonl")),
            _forms("tvgbench-forms", [{"path": "a", "question": "q", "answer": "1-2"}] * 2,
                   lambda path: _import(path, "tvgbench")),
            _lengths(), _names(), _words(), _keys()]  # fmt: skip


def _import(path: Path, dataset: str) -> None:
    report = import_annotations(path, dataset=dataset)
    assert report.counts["lines"] == sum(report.counts[kind] for kind in ("kept", "repaired", "dropped"))
    for row in report.rows:
        assert row.video.strip() and all(0 <= w.start_s < w.end_s for w in row.windows)


def _laid(files: Files, folder: Path, name: str) -> Path:
    (folder / name).write_bytes(files["a"])
    return folder / name


def _coded(rng: random.Random, data: bytes) -> bytes:
    """A text in another encoding, or compressed, perhaps damaged afterwards."""
    kind, text = rng.random(), data.decode("utf-8", "replace")
    if kind < 0.5:
        return data
    ways: list[Callable[[], bytes]] = [
        lambda: text.encode("utf-16"), lambda: text.encode("utf-16-be"), lambda: text.encode("utf-8-sig"),
        lambda: gzip.compress(data, 1), lambda: text.encode("latin-1", "replace"),
        lambda: text.encode("gbk", "replace"),
        lambda: gzip.compress(text.encode("utf-16"), 1), lambda: b"PK\x03\x04" + data]  # fmt: skip
    coded = rng.choice(ways)()
    return change.blob(rng, coded) if rng.random() < 0.3 else coded


def _csv(rng: random.Random, header: list[str], rows: list[list[Any]], sep: str) -> bytes:
    file = io.StringIO()
    names = [rng.choice((name, f" {name}", f"{name} ", "", "query")) if rng.random() < 0.1 else name for name in header]
    writer = csv.writer(file, delimiter=rng.choice((sep, sep, sep, ";")), quoting=rng.choice((0, 1)))
    writer.writerow(names)
    for row in rows:
        cells = [rng.choice(("", "nan", "1e400", '"', "[1, 2]", "\r", "x" * 50, -1)) if rng.random() < 0.1 else cell
                 for cell in row]  # fmt: skip
        writer.writerow(cells[: rng.choice((99, 99, 99, 3))] + [""] * rng.choice((0, 0, 0, 1)))
    data = file.getvalue().encode()
    return change.blob(rng, data) if rng.random() < 0.5 else data


def _table(end: str) -> Target:
    lines, sep = json.dumps(ROW).encode(), "\t" if end == ".tsv" else ","

    def make(rng: random.Random) -> Files:
        if end in (".csv", ".tsv"):
            return {"a": _coded(rng, _csv(rng, list(ROW), [list(ROW.values())] * 3, sep))}
        listed = end == ".json"
        data = change.json_file(rng, b"[" + lines + b"]") if listed else change.json_lines(rng, lines + b"\n" + lines)
        return {"a": _coded(rng, data)}

    return Target(f"hf-{end[1:]}", make, lambda files, folder: _import(_laid(files, folder, f"a[1]*{end}"), "hf"), 1)


def _lengths() -> Target:
    def make(rng: random.Random) -> Files:
        return {"a": _coded(rng, _csv(rng, ["id", "length"], [["A", 1.5], ["B", 2]], ","))}

    return Target("lengths-table", make, lambda files, folder: read_lengths(_laid(files, folder, "a")), 1)


def _parquet(seeds: Path) -> Target:
    import pyarrow as pa
    import pyarrow.parquet

    path = seeds / "a.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([ROW | {"windows": [[1.0, 2.0]]}, ROW | {"video": "7"}]), path)
    data = path.read_bytes()
    return Target("hf-parquet", lambda rng: {"a": change.blob(rng, data)},
                  lambda files, folder: _import(_laid(files, folder, "a.parquet"), "hf"), 1)  # fmt: skip


def _forms(name: str, seed: list[Any], read: Callable[[Path], Any]) -> Target:
    def make(rng: random.Random) -> Files:
        lines = change.json_lines(rng, b"\n".join(json.dumps(one).encode() for one in seed))
        kind = rng.random()
        if kind < 0.3:
            lines = b"[" + b",".join(lines.split(b"\n")) + b"]"
        elif kind < 0.6:
            lines = lines.replace(b", ", b",\n ").replace(b"{", b"{\n")
        return {"a": _coded(rng, lines)}

    return Target(name, make, lambda files, folder: read(_laid(files, folder, "a.jsonl")), 1)


def _texts() -> Target:
    data = "caf\u00e9: 1\nb: [\u72d7, 010]\n".encode()

    def run(files: Files, folder: Path) -> None:
        path = _laid(files, folder, "a.yaml")
        text = read_text(path, error=ConfigError, limit_bytes=1 << 20)
        text.encode()
        read_yaml(path)

    return Target("texts", lambda rng: {"a": _coded(rng, change.blob(rng, data))}, run, 1)


def _names() -> Target:
    def run(files: Files, folder: Path) -> None:
        asked, laid = (part.split("\n") for part in files["a"].decode("utf-8", "replace").partition("\0")[::2])
        for name in laid:
            path = Path(folder, *(part[:40] for part in name.split("/") if part not in ("", ".", "..")))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except (OSError, ValueError):
                continue
        finder = Finder(list_videos(folder))
        found = finder.find_all(asked)
        assert {*found} == {*asked}
        for path in finder.listing.videos:
            assert finder.find(path) == path and path not in finder.shared(path)

    def make(rng: random.Random) -> Files:
        sides = ["\n".join(rng.choice(NAMES) for _ in range(rng.randrange(1, 6))).encode() for _ in range(2)]
        return {"a": b"\0".join(change.blob(rng, side) if rng.random() < 0.5 else side for side in sides)}

    return Target("names", make, run, 1)


def _words() -> Target:
    wanted = {PreprocessConfig: ["out=x", "videos=x", "annotations=x", "dataset=jsonl", "policy=x",
                                 "caption.method=none", "segment.method=uniform"],
              TrainConfig: ["out=x", "policy=x", "shards=x"]}  # fmt: skip
    keys = {PreprocessConfig: ["videos", "columns", "columns.query", "caption.file", "sampling.sample_fps", "seed",
                               "name", "clip_model", "licences", "thumbnails"],
            TrainConfig: ["shards", "shards.0", "shards.0.path", "data.queries", "data.difficulty", "optimizer.lr",
                          "seed", "loss", "trackers", "validation.sets"]}  # fmt: skip

    def make(rng: random.Random) -> Files:
        words = [rng.choice(WORDS) if rng.random() < 0.6 else change.blob(rng, rng.choice(WORDS).encode()).decode(
            "utf-8", "surrogateescape") for _ in range(3)]  # fmt: skip
        sets = [[f"{rng.choice(names)}={word}" for word in words] for names in keys.values()]
        return {"a": json.dumps(sets).encode()}

    def run(files: Files, folder: Path) -> None:
        for (model, least), sets in zip(wanted.items(), json.loads(files["a"]), strict=True):
            for several in (sets[:1], sets):
                try:
                    digest(load_config(model, None, [*least, *several], package="taro.train.recipes"))
                except TaroError as error:
                    assert 0 < len(str(error)) < 20_000

    return Target("set-words", make, run, 1)


def _keys() -> Target:
    """Keys that exist, nearly exist, are other libraries' words or nothing, as `taro config` answers them."""
    stages = {"preprocess": PreprocessConfig, "train": TrainConfig}
    settings = {stage: list(settings_of(model)) for stage, model in stages.items()}
    known = {stage: [*(setting.path for setting in settings[stage]), *model.other_names]
             for stage, model in stages.items()}  # fmt: skip

    def make(rng: random.Random) -> Files:
        stage = rng.choice(list(stages))
        if rng.random() < 0.3:
            chosen = rng.choice([one for one in settings[stage] if one.default and ".N" not in one.path])
            return {"a": json.dumps([stage, rng.choice((None, "sandbox")),
                                     [f"{chosen.path}={chosen.default}"]]).encode()}
        sets = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            key = rng.choice(known[stage]).replace(".N", rng.choice((".0", ".9", ".N", "")))
            kind = rng.random()
            if kind < 0.4:
                key = change.blob(rng, key.encode()).decode("utf-8", "surrogateescape")
            elif kind < 0.6:
                key = rng.choice((key.partition(".")[2], f"{key}.x", f"a.{key}", key[:-1], key.upper(), "a." * 3000))
            sets.append(f"{key}{rng.choice(('=', '=', '=', ''))}{rng.choice((*WORDS, '1', 'x' * 300, 'true', '0.5'))}")
        recipe = rng.choice((None, None, "x" * 300, "sandbox", "taro-7b", "a.yaml"))
        return {"a": json.dumps([stage, recipe, sets]).encode()}

    def run(files: Files, _: Path) -> None:
        stage, recipe, sets = json.loads(files["a"])
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            (config_command.preprocess if stage == "preprocess" else config_command.train)(recipe, sets, as_json=True)
        rows = json.loads(shown.getvalue())["settings"]
        assert [row["name"] for row in rows] == [setting.path for setting in settings_of(stages[stage])]

    return Target("set-keys", make, run, 0.5)
