"""`taro preprocess`, end to end: plan, engine, ledgers, manifest.

A slice is done when the sidecars of all its shards verify; a rerun makes the others and nothing else. The manifest is
written last, once every slice is done, whoever did it, so a folder with a manifest is a complete set. Rows add up or
the job fails: `inputs == written + skipped`."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Literal

from taro.core.errors import ConfigError, ShardError, TaroError
from taro.core.files import explain_disk_errors, remove_temporary
from taro.models.features import TIME_ERROR_S, EncoderFingerprint
from taro.preprocess.captioners.registry import METHODS
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.engines.base import Engine
from taro.preprocess.engines.registry import ENGINES
from taro.preprocess.job import Job, Only, check_known, open_job
from taro.preprocess.ledger import SkippedRow, count_reasons, read_ledger
from taro.preprocess.report import PreprocessReport, Progress
from taro.preprocess.slices import SliceTask
from taro.preprocess.todo import plan_tasks, withdraw
from taro.shards.format import MANIFEST, Manifest, Provenance, shard_path, sidecar_path
from taro.shards.index_build import write_index
from taro.shards.manifest import build_manifest, read_manifest, write_manifest, write_skipped
from taro.shards.store_local import LocalStore

__all__ = ["VERSIONS", "PreprocessReport", "Progress", "library_versions", "preprocess"]

AGAIN = ("Make room or fix the disk, then run the same command again: finished slices and every caption are kept")
VERSIONS = ("av", "decord", "torch", "transformers", "open_clip_torch", "pillow", "numpy")


def preprocess(config: PreprocessConfig, *, progress: Callable[[Progress], None] | None = None,
               partition: tuple[int, int] = (1, 1), retry: Literal["transient"] | None = None, only: Only | None = None,
               engine: Engine | None = None) -> PreprocessReport:
    """Makes, or goes on making, the shard set `config.out`.

    Args:
        progress: called as clips are finished.
        partition: (i, n): make every n-th slice, beginning with the i-th, i from 1.
        retry: transient: make slices again in which rows were skipped that may pass now.
        only: features: add this policy's features (and its frame variants, where `variants.count` asks for some) to
            a complete set; variants: add its frame variants alone. Nothing else is touched.
        engine: runs the slices; None: the one that `config.engine` names.

    Raises TaroError: wrong settings, models or files; and where more than `config.max_skipped` of the rows are skipped:
    before any work where that is known then, else after all that can be written is written."""
    began = time.monotonic()
    part, parts = partition
    if not 1 <= part <= parts:
        raise ConfigError(f"partition {part}/{parts}: expected i/n with 1 <= i <= n")
    if retry is not None and only is not None:
        raise ConfigError("--retry makes slices again, --only adds to slices that are made; run one, then the other")
    with explain_disk_errors(config.out, lambda: AGAIN):
        job = open_job(config, only=only)
        for folder in (config.out, job.state, job.state / "ledger"):
            remove_temporary(folder)
        tasks = plan_tasks(job, only, partition=partition, retry=retry == "transient")
        if tasks:
            check_known(config, job.plan.inputs, _known_skipped(job, tasks))
        withdraw(job, tasks)
        runner = engine or ENGINES[config.engine]()
        results = runner.run(job, tasks, progress or (lambda _: None)) if tasks else []
        report = _finish(job, sum(result.made for result in results), began)
    problems = [problem for result in results for problem in result.problems]
    if problems:
        raise TaroError(f"{config.out}: nothing of {job.encoder.name} added for {len(problems)} clips, so their "
                        f"slices are not written: {'; '.join(problems[:5])}; restore these videos and run again")
    if report.complete:
        _check_share(report, config)
    return report


def _known_skipped(job: Job, tasks: Sequence[SliceTask]) -> list[SkippedRow]:
    """Rows that stay skipped whatever becomes of `tasks`: the plan's, and those of slices that are not made again."""
    again = {task.index for task in tasks if task.makes}
    ledgers = [read_ledger(job.state, index) for index in range(len(job.plan.slices)) if index not in again]
    return [*job.plan.skipped, *(row for ledger in ledgers if ledger is not None
                                 and ledger.plan_sha256 == job.plan_sha256 for row in ledger.skipped)]


def _finish(job: Job, made: int, began: float) -> PreprocessReport:
    """Adds the ledgers up and, where no slice is missing, writes skipped.parquet, card and manifest."""
    ledgers = [read_ledger(job.state, index) for index in range(len(job.plan.slices))]
    done = [ledger for index, ledger in enumerate(ledgers)
            if ledger is not None and ledger.plan_sha256 == job.plan_sha256 and _committed(job, index)]
    skipped = [*job.plan.skipped, *(row for ledger in done for row in ledger.skipped)]
    complete = len(done) == len(ledgers)
    captions = sum(ledger.captions for ledger in done)
    if complete:
        _write_set(job, skipped, captions)
    given = sum((Counter(ledger.given) for ledger in done), Counter[str]())
    found = METHODS[job.config.caption.method].given(job.config.caption)
    given += Counter() if found is None else found.unasked(job.plan.clips)
    off_s = [error_s for ledger in done for error_s in ledger.time_error_s.values()
             if error_s > TIME_ERROR_S and job.equal_steps]
    return PreprocessReport(
        out=job.config.out, inputs=job.plan.inputs, written=sum(ledger.written for ledger in done),
        skipped=len(skipped), clips=sum(ledger.clips for ledger in done), captions=captions,
        uncaptioned=sum(ledger.uncaptioned for ledger in done) if job.config.caption.method != "none" else 0,
        slices=(len(done), len(ledgers)), made=made, complete=complete, seconds=time.monotonic() - began,
        reasons=count_reasons(skipped), lint=job.plan.lint, given=dict(sorted(given.items())),
        transient=sum(row.transient for row in skipped),
        off_clips=len(off_s), off_s=max(off_s, default=0.0))


def _committed(job: Job, index: int) -> bool:
    names = [path(kind, index) for kind in job.kinds for path in (shard_path, sidecar_path)]
    return all((job.config.out / name).is_file() for name in names)


def _write_set(job: Job, skipped: list[SkippedRow], captions: int) -> None:
    from taro.core.version import __version__

    out, plan, config = job.config.out, job.plan, job.config
    write_skipped(out, [row.model_dump() for row in skipped])
    manifest: Manifest = build_manifest(
        out, inputs=plan.inputs, skipped=len(skipped), captions=captions, name=config.name, taro_version=__version__,
        encoders=_encoders(job), clip_encoders=[] if plan.clip_encoder is None else [plan.clip_encoder],
        captioner=plan.captioner, versions=library_versions(), plan_sha256=job.plan_sha256,
        index=write_index(out),
        config={**plan.shaping, "lint_counts": plan.lint},
        provenance=Provenance(dataset=config.dataset, split=config.split, annotations_file=plan.annotations_file,
                              annotations_sha256=plan.annotations_sha256, licence_videos=config.licences.videos,
                              licence_annotations=config.licences.annotations,
                              licence_captions=config.licences.captions))
    write_manifest(out, manifest)


def _encoders(job: Job) -> list[EncoderFingerprint]:
    """Fingerprints of all encoders of the set: the plan's, this run's, and those of earlier manifests whose features
    are here."""
    known: dict[str, EncoderFingerprint] = {}
    for folder in (job.state, job.config.out):
        if not (folder / MANIFEST).is_file():
            continue
        try:
            known.update({encoder.name: encoder for encoder in read_manifest(LocalStore(folder)).encoders})
        except ShardError as error:
            if folder == job.state:
                continue  # damaged when it was put aside
            raise ShardError(f"{error}. To have it made again, remove {job.config.out / MANIFEST} and run this command "
                             "again: slices that are whole are kept") from None
    known = {name: one for name, one in known.items() if (job.config.out / "features" / name).is_dir()}
    known.update({one.name: one for one in (job.plan.encoder, job.encoder)})
    return [known[name] for name in sorted(known)]


def library_versions() -> dict[str, str]:
    """Versions of what may show in a set's bytes, by name; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_share(report: PreprocessReport, config: PreprocessConfig) -> None:
    share = report.skipped / max(report.inputs, 1)
    why = ", ".join(f"{count} {reason}" for reason, count in report.reasons.items())
    hint = " and make those slices again with --retry transient" if report.transient else ""
    if report.written == 0:
        raise TaroError(f"{config.out}: none of {report.inputs:,} rows became a query ({why}); the set is empty. Fix "
                        f"the input{hint}, or begin anew in another folder")
    if share > config.max_skipped:
        raise TaroError(
            f"{config.out}: {report.skipped:,} of {report.inputs:,} rows ({share:.1%}) were skipped, more than "
            f"max_skipped = {config.max_skipped:.1%}: {why}. The set is written; skipped.parquet lists them; "
            f"fix the input{hint}, or allow it with --max-skipped")
