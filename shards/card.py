"""README.md of a set: a Hugging Face dataset card that `load_dataset` and the hub's viewer open.

Its one configuration is `queries`, of the index; of a set without index it is `paths`, of the paths shards. Not both:
`datasets` (4.4 to 5.2), with which the hub's viewer reads too, takes one reader for all configurations, that of the
first one's files, so tars beside parquet end in an error. Features have none: a viewer shows no tensors. Other files
are read by naming them (`data_files=`).

For `paths` the columns of KEY.json are declared, since `datasets` would otherwise guess them from the first five
records, and guess wrong where those have no caption or no difficulty. Text from outside enters the header through a
YAML writer and the body without markup, on one line."""

from __future__ import annotations

import json
from typing import Any

import yaml

from taro.shards.format import INDEX, Manifest, kind_ok

__all__ = ["card_text"]

_SPAN = [{"name": "start_s", "dtype": "float64"}, {"name": "end_s", "dtype": "float64"}]
_PATHS = {"list": {"list": "int64"}}
_JSON: list[dict[str, Any]] = [
    {"name": "key", "dtype": "string"},
    {"name": "video", "struct": [
        *({"name": name, "dtype": "string"} for name in ("path_hint", "sha256")),
        {"name": "duration_s", "dtype": "float64"}, {"name": "frames", "dtype": "int64"},
        {"name": "fps", "dtype": "float64"}, {"name": "width", "dtype": "int64"}, {"name": "height", "dtype": "int64"},
        *({"name": name, "dtype": "string"} for name in ("decoder", "frames_sha256")),
        {"name": "corrupt_frames", "dtype": "int64"}]},
    {"name": "clip", "struct": _SPAN},
    {"name": "times_s", "list": "float64"},
    {"name": "captions", "list": [*_SPAN, {"name": "text", "dtype": "string"},
                                  {"name": "alignment", "dtype": "float64"}]},
    {"name": "queries", "list": [
        *({"name": name, "dtype": "string"} for name in ("id", "text", "split")),
        {"name": "windows_s", "list": {"list": "float64"}}, {"name": "difficulty", "dtype": "float64"},
        {"name": "paths", "struct": [{"name": name, **_PATHS} for name in ("random", "overlap")]}]},
]
_ALWAYS = [{"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]

_BODY = """# {name}

A `taro` shard set, format version {version}: clips with dense captions, queries with their time windows, candidate
reasoning paths, and a frozen vision tower's features. Made by `taro preprocess` {taro}; no video is inside.

| | |
|---|---|
| dataset, split | {dataset}, {split} |
| annotation rows | {inputs}: {queries} written as queries, {skipped} skipped (`skipped.parquet` says why) |
| clips, captions | {clips}, {captions} |
| bytes | {bytes} |

## Kinds

{kinds}

## Licences

Videos: {videos}. Annotations: {annotations}. Captions: {captions_licence}. The features and contact sheets derive from
the videos: share them only as the videos' licence lets you.

## Reading

```python
import taro
from datasets import load_dataset

shard_set = taro.open_shards("PATH")
{loading}
```
"""
_LOADING = {
    "queries": 'queries = load_dataset("PATH", "queries", split="train")\n'
               'clips = load_dataset("PATH", data_files="paths/paths-*.tar", split="train")',
    "paths": 'clips = load_dataset("PATH", "paths", split="train")',
}


def card_text(manifest: Manifest) -> str:
    """The card of a set: YAML header, counts, kinds, licences and how to read it."""
    # Through JSON, so that nothing is shared: YAML would write aliases, which the reader of `datasets` cannot take.
    unshared = json.loads(json.dumps(_header(manifest)))
    header = yaml.safe_dump(unshared, sort_keys=False, allow_unicode=False, width=10_000)
    counts, source = manifest.counts, manifest.provenance
    body = _BODY.format(name=_line(manifest.name), version=_line(manifest.format_version),
                        taro=_line(manifest.taro_version), dataset=_line(source.dataset), split=_line(source.split),
                        inputs=counts.inputs, queries=counts.queries, skipped=counts.skipped, clips=counts.clips,
                        captions=counts.captions, bytes=f"{sum(entry.bytes for entry in manifest.shards):,}",
                        kinds=_kinds(manifest), loading=_LOADING["queries" if manifest.index else "paths"],
                        videos=_terms(source.licence_videos),
                        annotations=_terms(source.licence_annotations),
                        captions_licence=_terms(source.licence_captions))
    return f"---\n{header}---\n{body}"


def _header(manifest: Manifest) -> dict[str, Any]:
    about: dict[str, Any] = {"configs": [{"config_name": "queries", "data_files": INDEX, "default": True}]}
    if manifest.index is None:
        has_sheets = manifest.config.get("thumbnails", True) is not False
        members = [{"name": "json", "struct": _JSON}, *([{"name": "jpg", "dtype": "image"}] if has_sheets else [])]
        about = {"configs": [{"config_name": "paths", "data_files": "paths/paths-*.tar", "default": True}],
                 "dataset_info": [{"config_name": "paths", "features": members + _ALWAYS}]}
    clips = manifest.counts.clips
    return {"pretty_name": manifest.name, "license": "other", "license_name": "see-licences",
            "license_link": "README.md", "task_categories": ["video-text-to-text"],
            "size_categories": ["n<1K" if clips < 1000 else "1K<n<10K" if clips < 10_000 else
                                "10K<n<100K" if clips < 100_000 else "100K<n<1M"],
            "tags": ["taro", "webdataset", "video-temporal-grounding"], **about}


def _kinds(manifest: Manifest) -> str:
    lines = []
    for kind in manifest.kinds:
        of_kind = [entry for entry in manifest.shards if entry.kind == kind]
        lines.append(f"- `{kind}`: {sum(e.records for e in of_kind)} records in {len(of_kind)} shards, "
                     f"{sum(e.bytes for e in of_kind):,} bytes")
    for encoder in manifest.encoders:
        lines.append(f"- encoder {_code(encoder.name)}: {_line(encoder.model_id)}, tower sha256 "
                     f"{_code(encoder.tower_sha256)}, {_line(encoder.dtype)}")
    return "\n".join(lines)


def _terms(licence: str) -> str:
    return _line(licence) + (" (nobody has recorded it: ask before you share)" if licence in {"", "unknown"} else "")


def _code(name: str) -> str:
    """A name as code; one that is not of the format's grammar as text, since nothing can be escaped within code."""
    return f"`{name}`" if kind_ok(f"features/{name}") else _line(name)


def _line(text: str) -> str:
    """Text from outside, as one line that Markdown and HTML take literally."""
    return "".join(f"&#{ord(char)};" if char in "<>&|[]`*_#!\\" else char if char.isprintable() else " "
                   for char in text[:300]) or "unknown"
