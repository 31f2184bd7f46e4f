"""Whose a folder is: a job's, once it has begun a slice; not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.config import PreprocessConfig
from preprocess.job import begin, open_job
from preprocess.plan import STATE
from preprocess.run import preprocess
from taro.errors import AnnotationError, ConfigError, ModelError

Make = Callable[..., PreprocessConfig]


def test_a_wrong_first_try_does_not_claim_the_folder(job: Make, tmp_path: Path) -> None:
    """A format that no line has, a model that does not load: both are found before a slice is begun."""
    with pytest.raises(AnnotationError, match=r"none of its 12 rows became a query .*its format is charades-sta"):
        preprocess(job(dataset="charades-sta"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="open_clip cannot load"):
        preprocess(job(clip_model="ViT-B-32/no-such-weights"))
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
