"""The whole stage: every row ends somewhere, and however the work is interrupted or split the bytes are the same."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taro.annotations import AnnotationRow, Kept, LintReport
from taro.core.config import load_config, recipe_names
from taro.core.errors import ConfigError, ShardError, TaroError
from taro.grounding.moment import Moment
from taro.models.encoder import load_encoder
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.encode import encode_clip
from taro.preprocess.estimate import estimate
from taro.preprocess.job import open_job
from taro.preprocess.listing import Finder, list_videos
from taro.preprocess.plan import STATE, PlannedClip, _group
from taro.preprocess.run import preprocess
from taro.preprocess.video.decode import DecodeJob, decode_clip
from taro.shards.manifest import read_skipped
from taro.shards.reader import open_shards
from taro.shards.verify import verify
from tests.helpers_models import tiny_qwen2_5_vl
from tests.helpers_video import write_audio, write_video

Make = Callable[..., PreprocessConfig]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a set, the job's own state left out."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and STATE not in path.parts}  # fmt: skip


def test_rows_in_are_queries_out(job: Make, tiny_policy: Path, videos: Path) -> None:
    config = job()
    report = preprocess(config)
    assert (report.inputs, report.written, report.skipped, report.clips) == (12, 12, 0, 6)
    assert report.complete and report.slices == (3, 3)
    assert verify(config.out).problems == []
    found = open_shards(config.out)
    assert sorted(ref.query.id for ref in found.queries()) == sorted(f"{i}-{q}" for i in range(6) for q in range(2))
    encoder = load_encoder(tiny_policy)
    for key in found.keys:
        clip = found.clip(key)
        frames = decode_clip(DecodeJob(videos / clip.video.path_hint, config.sampling))
        expected = encode_clip(encoder, frames, config.sampling)
        got = found.features(key)
        assert torch.equal(got.main_SND, expected.main_SND)
        assert np.array_equal(got.times_S, expected.times_S)
        assert (got.grid_thw, got.seconds_per_patch) == (expected.grid_thw, expected.seconds_per_patch)
        assert [c.text for c in clip.captions] == ["part 0", "part 1", "part 2"]
        assert clip.times_s == frames.times_s.tolist()
        assert all(len(q.paths.random) == len(q.paths.overlap) == 4 for q in clip.queries)


def test_interrupted_split_or_slow_the_bytes_are_the_same(job: Make, tmp_path: Path) -> None:
    whole = preprocess(job(out=tmp_path / "whole", workers=2))
    reference = digests(whole.out)

    assert preprocess(job(out=whole.out)).made == 0
    assert digests(whole.out) == reference

    for sidecar in (whole.out / "paths").glob("paths-000001.json"):
        sidecar.unlink()  # killed before the sidecar was written
    (whole.out / "manifest.json").unlink()
    damaged = next((whole.out / "features").rglob("features-000002.tar"))
    damaged.write_bytes(damaged.read_bytes()[:-700])
    again = preprocess(job(out=whole.out, workers=1))
    assert again.made == 2 and digests(whole.out) == reference

    parts = tmp_path / "parts"
    first = preprocess(job(out=parts, workers=1), partition=(2, 2))
    assert not first.complete and first.slices == (1, 3) and not (parts / "manifest.json").exists()
    assert preprocess(job(out=parts), partition=(1, 2)).complete
    assert digests(parts) == reference


def test_a_job_killed_at_any_moment_resumes_to_the_same_bytes(job: Make, tmp_path: Path) -> None:
    reference = digests(preprocess(job(out=tmp_path / "whole", slice_clips=1)).out)
    config = job(slice_clips=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "taro", "preprocess", str(recipe)]
    for shards_seen in (1, 3):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while running.poll() is None and len(list((config.out / "paths").glob("*.tar"))) < shards_seen:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not (config.out / "manifest.json").exists()
    report = preprocess(config)
    assert report.complete and 0 < report.made < 6
    assert digests(config.out) == reference


def test_every_bad_input_is_in_the_ledger_with_its_reason(
    job: Make, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "bad videos"
    (folder / "sub").mkdir(parents=True)
    write_video(folder / "sub" / "good.mp4", 40)
    write_video(folder / "one frame.mp4", 1)
    write_video(folder / "it's {a} \"name\" \u00fc\u6f22.mp4", 40)
    write_video(folder / "twin.mp4", 20)
    write_video(folder / "twin.mkv", 20)
    write_audio(folder / "sound.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    query = "a \"quoted\"\n{braced} <think> <|video_pad|> " + "long " * 2000
    lines: list[dict[str, Any]] = [
        {"video": "sub/good.mp4", "query": query, "windows": [[0, 2]]},
        {"video": "good", "query": "by its bare name", "windows": [[3.5, 99]], "duration": 100},
        {"video": "good", "query": "too late", "windows": [[50, 60]]},
        {"video": "good", "query": "reversed", "windows": [[3, 1]]},
        {"video": "one frame.mp4", "query": "still", "windows": [[0, 0.1]]},
        {"video": "it's {a} \"name\" \u00fc\u6f22.mp4", "query": "hostile", "windows": [[0, 1]]},
        {"video": "twin", "query": "which", "windows": [[0, 1]]},
        {"video": "sound.mp4", "query": "sound", "windows": [[0, 1]]},
        {"video": "empty.mp4", "query": "empty", "windows": [[0, 1]]},
        {"video": "text.mp4", "query": "text", "windows": [[0, 1]]},
        {"video": "../../etc/passwd", "query": "outside", "windows": [[0, 1]]},
        {"video": "nowhere.mp4", "query": "missing", "windows": [[0, 1]]},
        {"video": "good", "query": "", "windows": [[0, 1]]},
    ]
    config = job(lines, videos=folder, max_skipped=1.0)
    report = preprocess(config)
    assert report.complete and report.inputs == len(lines) == report.written + report.skipped
    assert verify(config.out).problems == []
    reasons = {row["line"]: (row["stage"], row["reason"]) for row in read_skipped(config.out)}
    assert {line: reason for line, (_, reason) in reasons.items() if line != 13} == {
        3: "window outside the clip", 7: "ambiguous", 8: "no video stream", 9: "empty", 10: "not a video",
        11: "missing", 12: "missing",
    }  # fmt: skip
    assert reasons[13][0] == "annotations"
    texts = {q.text for ref in open_shards(config.out).queries() for q in [ref.query]}
    assert len(texts) == 5 and any("{braced} <think> <|video_pad|>" in text for text in texts)
    shared = b"".join(path.read_bytes() for path in config.out.rglob("*") if path.is_file() and STATE not in path.parts)
    assert str(tmp_path).encode() not in shared  # no folder of this machine in anything that may be shared


def test_too_many_skipped_rows_fail_the_job_after_all_is_written(job: Make, rows: list[dict[str, Any]]) -> None:
    lines = [*rows, {"video": "v0.mp4", "query": "x", "windows": [[90, 91]], "qid": "late"}]
    config = job(lines)
    with pytest.raises(TaroError, match=r"1 of 13 rows \(7\.7%\).*max_skipped.*1 windows: window outside.*is written"):
        preprocess(config)
    assert verify(config.out).problems == [] and len(list(open_shards(config.out).queries())) == 12
    assert preprocess(job(lines, max_skipped=0.1)).complete  # the same folder; nothing is made again


def test_what_is_known_to_be_too_many_skipped_rows_fails_before_any_work(
    job: Make, rows: list[dict[str, Any]], tmp_path: Path, videos: Path
) -> None:
    """No model is loaded, nothing is claimed: the video that was missing is brought back, and the same line passes."""
    folder = Path(shutil.copytree(videos, tmp_path / "some"))
    (folder / "v5.mp4").rename(tmp_path / "v5.mp4")
    said = r"2 of 12 rows \(16\.7%\) are skipped before a video is read.*2 plan: missing.*Nothing was made"
    begun: list[str] = []
    with pytest.raises(TaroError, match=said):
        preprocess(job(videos=folder), progress=lambda at: begun.append(at.stage))
    with pytest.raises(TaroError, match=said):
        estimate(job(videos=folder))
    assert not begun and not (tmp_path / "out").exists()
    (tmp_path / "v5.mp4").rename(folder / "v5.mp4")
    assert preprocess(job(videos=folder)).written == 12


@pytest.mark.parametrize(("data", "said"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not a video (line 11 'v5.mp4': a Git LFS"),
    (b"<!DOCTYPE html><html>", "not a video (line 11 'v5.mp4': an HTML page, not a video"),
    (b"", "empty (line 11 'v5.mp4': 0 bytes"),
    (None, "truncated (line 11 'v5.mp4': an mp4 without its index"),
])  # fmt: skip
def test_what_the_first_bytes_show_fails_before_any_work(
    job: Make, tmp_path: Path, videos: Path, data: bytes | None, said: str
) -> None:
    """And where it is allowed, it is skipped by the plan; with the real file in its place the same line passes."""
    folder = Path(shutil.copytree(videos, tmp_path / "some"))
    whole = (folder / "v5.mp4").read_bytes()
    (folder / "v5.mp4").write_bytes(whole[:-300] if data is None else data)
    begun: list[str] = []
    for action in (lambda: preprocess(job(videos=folder), progress=lambda at: begun.append(at.stage)),
                   lambda: estimate(job(videos=folder))):  # fmt: skip
        with pytest.raises(TaroError, match=re.escape(f"2 plan: {said}")):
            action()
    assert not begun and not (tmp_path / "out").exists()
    allowed = preprocess(job(videos=folder, out=tmp_path / "allowed", max_skipped=0.5))
    assert allowed.reasons == {f"plan: {said.partition(' (')[0]}": 2} and allowed.written == 10
    (folder / "v5.mp4").write_bytes(whole)
    assert preprocess(job(videos=folder)).written == 12


def test_a_resumed_job_knows_what_its_finished_slices_skipped(job: Make, rows: list[dict[str, Any]]) -> None:
    lines = [*rows, {"video": "v0.mp4", "query": "x", "windows": [[90, 91]], "qid": "late"}]
    assert preprocess(job(lines), partition=(1, 3)).slices == (1, 3)
    with pytest.raises(TaroError, match=r"1 of 13 rows .* are skipped before a video is read"):
        preprocess(job(lines))
    assert preprocess(job(lines, max_skipped=0.1)).complete


def test_a_set_without_any_query_is_an_error(job: Make) -> None:
    with pytest.raises(TaroError, match="none of its 1 rows became a query"):
        preprocess(job([{"video": "gone.mp4", "query": "x", "windows": [[0, 1]]}], max_skipped=1.0))


def test_a_damaged_manifest_is_named_with_the_way_out(job: Make) -> None:
    config = job()
    preprocess(config)
    manifest = config.out / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:500])
    with pytest.raises(ShardError, match=r"manifest\.json: not valid JSON.*remove .*manifest\.json and run this"):
        preprocess(config)
    manifest.unlink()
    assert preprocess(config).made == 0 and manifest.read_bytes() == whole


def test_other_settings_on_a_begun_folder_are_refused_with_the_difference(
    job: Make, rows: list[dict[str, Any]]
) -> None:
    preprocess(job())
    with pytest.raises(ConfigError, match=r"paths\.count: 4 -> 5"):
        preprocess(job(paths={"count": 5}))
    with pytest.raises(ConfigError, match="annotations_sha256"):
        preprocess(job(rows[:3]))
    assert preprocess(job(workers=1, max_skipped=0.5, decode={"deadline_s": 9})).made == 0


def test_retry_makes_only_the_slices_that_may_pass(job: Make, tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(videos, folder)
    config = job(videos=folder, max_skipped=1.0)
    reference = preprocess(job(videos=folder, out=tmp_path / "reference"))
    open_job(config)  # plans; then a file changes under it
    kept = (folder / "v0.mp4").read_bytes()
    (folder / "v0.mp4").write_bytes(kept + b"\0")
    report = preprocess(config)
    assert report.reasons == {"decode: changed since the plan": 2}
    (folder / "v0.mp4").write_bytes(kept)
    assert preprocess(config).made == 0
    healed = preprocess(config, retry="transient")
    assert (healed.made, healed.skipped, healed.written) == (1, 0, 12)
    assert {k: v for k, v in digests(config.out).items() if k.endswith(".tar")} == {
        k: v for k, v in digests(reference.out).items() if k.endswith(".tar")}  # fmt: skip


def test_another_encoder_joins_without_touching_the_rest(job: Make, tmp_path: Path) -> None:
    config = job()
    preprocess(config)
    before = digests(config.out)
    other = tiny_qwen2_5_vl(tmp_path / "other", seed=7)
    with pytest.raises(ConfigError, match="--only features"):
        preprocess(job(policy=str(other)))
    report = preprocess(job(policy=str(other)), only="features")
    assert report.complete and report.made == 3
    after = digests(config.out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"manifest.json", "README.md"}
    assert verify(config.out).problems == []
    encoders = open_shards(config.out).encoders
    assert len(encoders) == 2 and len({e.tower_sha256 for e in open_shards(config.out).manifest.encoders}) == 2
    one, two = (open_shards(config.out, encoder=name) for name in encoders)
    assert not torch.equal(one.features(one.keys[0]).main_SND, two.features(two.keys[0]).main_SND)
    shard = config.out / "paths" / "paths-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert preprocess(config).made == 1  # the manifest is written anew, and still knows the encoder that joined
    assert digests(config.out) == after and verify(config.out).problems == []
    shutil.rmtree(config.out / STATE)  # as a set that was downloaded
    with pytest.raises(ConfigError, match="this set came without one"):
        preprocess(job(policy=str(other)), only="features")
    assert digests(config.out) == after


def test_a_field_that_a_plan_does_not_use_is_not_in_its_digest(job: Make) -> None:
    """So the folder of an older taro goes on under a newer one."""
    plan = open_job(job()).plan
    text = (job().out / STATE / "plan.json").read_text()
    assert '"may_be_cut": false' in text
    (job().out / STATE / "plan.json").write_text(text.replace('"may_be_cut": false,', ""))
    older = open_job(job()).plan
    assert older.sha256 == plan.sha256
    clips = [clip.model_copy(update={"may_be_cut": True}) for clip in plan.clips]
    assert plan.model_copy(update={"clips": clips}).sha256 != plan.sha256


def test_cuts_of_one_file_are_clips_of_their_own(job: Make, rows: list[dict[str, Any]]) -> None:
    def row(line: int, clip: Moment | None) -> AnnotationRow:
        return AnnotationRow(str(line), line, "v0.mp4", "q", (Moment(0, 1),), None, clip, "train", None, None)

    cuts = [None, Moment(0, 2), Moment(0, 2), Moment(1, 3)]
    report = LintReport("jsonl", "0" * 64, tuple(Kept(row(i, cut)) for i, cut in enumerate(cuts)))
    clips, skipped = _group(report, Finder(list_videos(job().videos)), job().videos)
    assert not skipped and sorted(len(clip.rows) for clip in clips) == [1, 1, 2]
    assert [clip.key for clip in clips] == sorted({clip.key for clip in clips})
    assert all(isinstance(clip, PlannedClip) and clip.path == "v0.mp4" for clip in clips)


def test_thumbnails_can_be_left_out(job: Make) -> None:
    config = job(thumbnails=False)
    preprocess(config)
    found = open_shards(config.out)
    assert all(found.thumbnail(key) is None for key in found.keys)


def test_recipes_fit_their_settings() -> None:
    names = recipe_names("taro.preprocess.recipes")
    assert {"charades-sta", "jsonl", "sandbox"} <= set(names)
    for name in names:
        load_config(PreprocessConfig, name, package="taro.preprocess.recipes")


def test_a_dry_run_writes_nothing_and_counts(job: Make, rows: list[dict[str, Any]]) -> None:
    config = job([*rows, {"video": "gone.mp4", "query": "x", "windows": [[0, 1]], "qid": "gone"}], max_skipped=0.1)
    found = estimate(config)
    assert (found.inputs, found.rows, found.skipped, found.clips, found.videos, found.slices) == (13, 12, 1, 6, 6, 3)
    assert found.captions == 18 and found.sampled == 4 and found.failed == 0 and found.feature_bytes > 0
    assert "nothing was written" in found.table() and json.dumps(found.as_dict())
    assert not config.out.exists()


def test_a_dry_run_counts_what_is_left(job: Make, tiny_policy: Path, tmp_path: Path) -> None:
    """Slices that are made cost nothing; another encoder costs features, no captions."""
    config = job()
    assert preprocess(config, partition=(1, 3)).made == 1
    found = estimate(config)
    assert (found.slices, found.slices_left, found.clips, found.clips_left, found.captions) == (3, 2, 6, 4, 12)
    assert "2 slices are left: 4 clips" in found.table()
    preprocess(config)
    found = estimate(config)
    assert (found.slices_left, found.captions, found.feature_bytes, found.sampled) == (0, 0, 0, 0)
    assert found.table().endswith("nothing is left to do")
    other = tiny_qwen2_5_vl(tmp_path / "other", width=64)
    (other / "taro.json").write_text('{"template": "sandbox"}')
    adding = estimate(job(policy=str(other)), only="features")
    assert (adding.slices_left, adding.clips_left, adding.captions) == (3, 6, 0) and adding.feature_bytes > 0
    assert len(list((config.out / "features").iterdir())) == 1
    variants = estimate(job(variants={"count": 2}), only="variants")
    assert (variants.slices_left, variants.feature_bytes, variants.model_hours, variants.variants) == (3, 0, 0.0, 2)
    assert "2 frame variants of each query, not counted" in variants.table() and adding.variants == 0
    one, more = (estimate(job(out=tmp_path / str(tokens), sampling={"total_tokens": tokens})) for tokens in (8, 16))
    assert more.model_hours == pytest.approx(2 * one.model_hours), "the tower's time goes by tokens"
