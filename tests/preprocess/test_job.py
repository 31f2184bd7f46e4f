"""Whose a folder is: a job's, once it has begun a slice; not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taro.core.errors import AnnotationError, ConfigError, ModelError
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.job import begin, open_job
from taro.preprocess.plan import STATE
from taro.preprocess.run import preprocess
from taro.shards.reader import open_shards

Make = Callable[..., PreprocessConfig]


def test_a_wrong_first_try_does_not_claim_the_folder(job: Make, tmp_path: Path) -> None:
    """A format that no line has, a model that does not load: both are found before a slice is begun."""
    with pytest.raises(AnnotationError, match=r"none of its 12 rows became a query .*its format is charades-sta"):
        preprocess(job(dataset="charades-sta"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match="open_clip cannot load"):
        preprocess(job(clip_model=str(tmp_path / "clip")))
    assert (tmp_path / "out" / STATE / "plan.json").is_file()
    report = preprocess(job())
    assert report.complete and report.written == 12
    with pytest.raises(ConfigError, match="begun with other settings"):
        preprocess(job(paths={"count": 5}))


def test_of_two_jobs_that_differ_one_goes_on(job: Make) -> None:
    first = open_job(job(paths={"count": 3}))
    second = open_job(job())  # the first has begun no slice yet
    begin(second)
    with pytest.raises(ConfigError, match="another job began here with other settings"):
        begin(first)
    with pytest.raises(ConfigError, match="begun with other settings"):
        open_job(job(paths={"count": 3}))
    assert open_job(job()).plan.sha256 == second.plan.sha256


def test_a_parquet_with_columns_of_its_own_becomes_a_set(job: Make, tmp_path: Path) -> None:
    """`dataset: hf` in a recipe, as for a hub id: nested values, one window a row, captions under another name."""
    from pyarrow import Table, parquet

    captions = [{"start_s": 0.0, "end_s": 1.0, "text": "part 0"}, {"start_s": 2.0, "end_s": 1.0, "text": "turned"}]
    parquet.write_table(Table.from_pylist([
        {"files": [f"v{i}.mp4"], "sentence": f" part {i}", "truth": {"span": [0.0, 1.0]}, "dense": captions}
        for i in range(6)]), tmp_path / "rows.parquet")  # fmt: skip
    columns = {"video": "files.0", "query": "sentence", "windows": "truth.span", "captions": "dense"}
    config = job(annotations=tmp_path / "rows.parquet", dataset="hf", columns=columns, split="val")
    report = preprocess(config)
    assert (report.written, report.captions, report.lint["repair: query stripped of blanks"]) == (6, 12, 6)
    found = open_shards(config.out)
    assert {ref.query.text for ref in found.queries(split="val")} == {f"part {i}" for i in range(6)}
    assert [c.text for c in found.clip(found.keys[0]).captions] == ["part 0", "turned"]


def test_where_a_template_lies_is_no_part_of_a_set(job: Make, tmp_path: Path) -> None:
    """A job goes on from another folder, and the path does not enter the manifest; the prompt does."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        name = str(folder / "mine.yaml")
        assert job(caption={"method": "none", "template": name}).shaping()["caption"]["template"] == "mine.yaml"
    assert job(caption={"method": "none", "template": "taro"}).shaping()["caption"]["template"] == "taro"
