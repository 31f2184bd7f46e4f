"""Whether a set's own words let it be shared: each of its licences is one that is known to, or its user must say so.

taro cannot judge a licence. It knows names whose texts let everybody pass on changed copies (features, captions and
contact sheets are such), and words that say the opposite; everything else, "unknown" too, is a question for whoever
pushes: `--i-may-share`. A merged set's licences are those of all its parts, `; ` between them."""

from __future__ import annotations

import re
from typing import Literal

from taro.core.errors import ConfigError
from taro.shards.format import Provenance

__all__ = ["LicenceError", "Sharing", "check_licences", "sharing"]

Sharing = Literal["free", "unknown", "forbidden"]

_FREE = re.compile(
    r"(?:apache(?:[ -]licen[sc]e)?[ ,-]*(?:version )?2(?:\.0)?|mit(?:[ -]licen[sc]e)?|"
    r"bsd(?:-[23]-clause)?|isc|unlicense|"
    r"public[ -]domain|pddl|odbl(?:-1\.0)?|odc-by(?:-1\.0)?|cdla-(?:permissive|sharing)-[12]\.0|"
    r"cc[ -]?(?:0|zero)(?:[ -]1\.0)?|cc[ -]by(?:[ -]nc)?(?:[ -]sa)?(?:[ -](?:1\.0|2\.0|2\.5|3\.0|4\.0))?)")
_FORBIDS = re.compile(r"propriet|all rights reserved|confidential|"
                      r"no[nt]?[ -](?:to be )?(?:re)?(?:shar|distribut|publi)|"
                      r"internal|forbid|prohibit|must not|may not|do not|private|\bnd\b|no[ -]?deriv|no redistribution|"
                      r"without redistribution|no sharing")


class LicenceError(ConfigError):
    """The licences of a set do not say that it may be shared."""


def sharing(licence: str) -> Sharing:
    """What is known of a licence by its name; of several, `; ` between them, the strictest.

    >>> [sharing(name) for name in ("Apache-2.0", "CC-BY-4.0; unknown", "CC BY-NC-ND 4.0", "no redistribution", "")]
    ['free', 'unknown', 'forbidden', 'forbidden', 'unknown']
    """
    found = {_one(part) for part in licence.split(";")}
    return "forbidden" if "forbidden" in found else "unknown" if "unknown" in found else "free"


def _one(licence: str) -> Sharing:
    name = re.sub(r"[\s_]+", " ", licence).strip().lower()
    if _FORBIDS.search(name.replace("-", " ")) or _FORBIDS.search(name):
        return "forbidden"
    return "free" if _FREE.fullmatch(name) else "unknown"


def check_licences(source: Provenance, *, i_may_share: bool) -> None:
    """LicenceError unless every licence is known to let changed copies be shared, or whoever pushes says so."""
    said = {"videos": source.licence_videos, "annotations": source.licence_annotations,
            "captions": source.licence_captions}
    found = {what: sharing(licence) for what, licence in said.items()}
    if i_may_share or set(found.values()) == {"free"}:
        return
    lines = [f"  {what}: {said[what][:200]}" + {"free": "", "unknown": " (not a licence that taro knows)",
                                                "forbidden": " (this forbids it)"}[found[what]] for what in said]
    raise LicenceError("expected licences that let a set be shared, got:\n" + "\n".join(lines)
                       + "\nAsk whose data it is. If you may share it, push with --i-may-share; what you know goes "
                         "into the set with `taro preprocess RECIPE --set licences.videos=...`, which makes nothing "
                         "again")
