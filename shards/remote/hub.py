"""Sets on a Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`, `hf://buckets/OWNER/NAME[/FOLDER]`.

A data set is read at one commit: its revision (a branch, a tag, a commit; `main` where none is named) is resolved once
when the place is opened, and the place then names the commit. A bucket has no revisions. A hub counts requests, so one
listing tells sizes and digests of all files, a page for each thousand, and the address of a large file in the content
network is kept while it works: one request to the hub for each file that is read, whatever the number of ranges.

Addresses, tokens and errors are huggingface_hub's own (1.x speaks httpx, 2.x httpx2: only what it exports itself is
used), its disk cache is not. The addresses in the content network are signed: they stay in memory, and no text of the
library, which may quote one, enters a message. Left out: models, spaces, Xet's own protocol for reading."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    BucketNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
)

from taro.core.errors import ShardError
from taro.core.json import strict_json
from taro.core.numbers import read_count
from taro.core.places import shown_place
from taro.core.text import one_line, shortened
from taro.core.version import __version__
from taro.shards.remote.bucket import (
    MAX_LISTED,
    WAITS_S,
    Head,
    Listed,
    RefusedError,
    RemoteError,
    ServerError,
    UnreachableError,
    missing,
    resumed,
    retrying,
    status_error,
)

__all__ = ["ADVICE", "HubAddress", "HubFiles", "NoDatasetError", "WRITE_ADVICE", "api", "explained", "open_hub",
           "parse_hub", "quiet", "resolve", "session"]

ADVICE = "Log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
WRITE_ADVICE = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
TIMEOUT_S = 60.0
"""of one wait for bytes; the client has none of its own"""
COMMIT_S = 180.0
"""of one wait for an answer to what the client asks itself; a hub may take a minute for a commit"""
MAX_PAGE_BYTES = 64 * 2**20
"""of one answer in JSON"""
MAX_PAGES = 10_000
MAX_NAME = 1024
_FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError)
"""what the client raises where no whole answer comes: the base class of its HTTP library, whichever that is"""
_CAUGHT: tuple[type[Exception], ...] = (*_FAILURES, RuntimeError, ValueError, KeyError, TypeError)
"""those, and what it raises where an answer is not as it expects"""
_PLACE = re.compile(r"hf://(datasets|buckets)/([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


_LOGGERS = ("huggingface_hub.utils._http", "httpx", "httpx2")
"""of the client, which name the address of a request"""


class NoDatasetError(RefusedError):
    """There is no such data set or bucket, or the token may not know of it."""


@dataclass(frozen=True, slots=True)
class HubAddress:
    """What a place names. `kind`: "datasets" or "buckets"; `folder`: "" or what all names of the set begin with."""

    kind: str
    repo: str
    revision: str | None = None
    folder: str = ""

    @property
    def place(self) -> str:
        """The address as a user writes it."""
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.kind}/{self.repo}{revision}{'/' * bool(self.folder)}{self.folder.rstrip('/')}"


def parse_hub(place: str) -> HubAddress:
    """The parts of a place; ShardError where it is none.

    >>> parse_hub("hf://datasets/team/charades@v1.0/train")
    HubAddress(kind='datasets', repo='team/charades', revision='v1.0', folder='train/')
    """
    found = _PLACE.fullmatch(place)
    folder = [part for part in found[4].split("/") if part] if found and found[4] else []
    if (not found or not _REPO.fullmatch(found[2]) or {".", ".."} & {*folder}
            or (found[1] == "buckets" and found[3] is not None)):
        raise ShardError(f"{one_line(shortened(shown_place(place)))}: no place on a hub; expected "
                         "hf://datasets/OWNER/NAME, with @REVISION where it is not `main`, or hf://buckets/OWNER/NAME")
    revision = None if found[3] is None else unquote(found[3])
    return HubAddress(found[1], found[2], revision, "".join(f"{part}/" for part in folder))


def open_hub(place: str, *, waits_s: Sequence[float] = WAITS_S) -> HubFiles:
    """A place, open for reading, a revision resolved to its commit. ShardError where there is none or it is refused;
    `waits_s`: seconds between attempts."""
    address = parse_hub(place)
    if address.kind == "datasets":
        address = replace(address, revision=resolve(address, waits_s=waits_s)[0])
    return HubFiles(address, waits_s=waits_s)


def resolve(address: HubAddress, *, waits_s: Sequence[float] = WAITS_S) -> tuple[str, bool]:
    """(commit, private) of a data set's revision, of `main` where none is named; NoDatasetError where it is not there
    or the token may not read it."""
    revision = quote(address.revision or constants.DEFAULT_REVISION, safe="")
    facts, _ = retrying(partial(_ask, address.place, f"{address.kind}/{address.repo}/revision/{revision}",
                                [("expand", "sha"), ("expand", "private")]), waits_s=waits_s)
    facts = facts if isinstance(facts, dict) else {}
    commit, private = facts.get("sha"), facts.get("private")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit) or not isinstance(private, bool):
        raise ServerError(f"{address.place}: expected the commit of the revision, got none; check HF_ENDPOINT")
    return commit, private


class HubFiles:
    """The files of a data set at one commit, or of a bucket, as a `taro.shards.remote.bucket.Bucket`; see `open_hub`.

    Head's etag is the sha256 of a large file and git's sha1 of a small one (of a bucket's the Xet hash), as the listing
    has it, which is read once."""

    def __init__(self, address: HubAddress, *, waits_s: Sequence[float] = WAITS_S) -> None:
        self.address, self.waits_s = address, tuple(waits_s)
        self._heads: dict[str, Head] | None = None
        self._signed: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_signed": {}}  # secrets: another process asks for its own

    @property
    def place(self) -> str:
        """The address; a data set's names its commit."""
        return self.address.place

    @property
    def revision(self) -> str | None:
        """The commit that all reads are of; None of a bucket."""
        return self.address.revision

    def describe(self, name: str) -> str:
        """A file's address, for messages."""
        return f"{self.place}/{one_line(shortened(name))}"

    def head(self, name: str) -> Head:
        """Size and digest of a file, from the listing."""
        found = self.heads().get(name)
        if found is None:
            raise missing(self.describe(name))
        return found

    def list(self) -> Sequence[Listed]:
        """All files of the place, by name."""
        return [Listed(name, head.size) for name, head in sorted(self.heads().items())]

    def chunks(self, name: str, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """Bytes [start, stop) of a file, in pieces as they come."""
        head, where = self.head(name), self.describe(name)
        if etag is not None and head.etag != etag:
            raise status_error(where, 412, advice=ADVICE)
        return resumed(lambda at: self._part(name, at, stop, head.size), where, start, stop, waits_s=self.waits_s)

    def put(self, name: str, path: Path, *, absent: bool) -> bool:
        """Writes a file of a bucket, by Xet. A hub has no call that creates only: where two write one name at the same
        time with `absent`, both may."""
        where, full = self.describe(name), f"{self.address.folder}{name}"
        if self.address.kind != "buckets":
            raise ShardError(f"{where}: a data set is written in commits; `taro shards push` makes them")
        with quiet(), explained(where, advice=WRITE_ADVICE):
            if absent and [*api().get_bucket_paths_info(self.address.repo, [full])]:
                return False
            api().batch_bucket_files(self.address.repo, add=[(str(path), full)])
        self._heads = None
        self._signed.pop(name, None)  # of the bytes that were there
        return True

    def url(self, name: str) -> str:
        """Where the hub gives a file; holds no secret."""
        path = f"{self.address.folder}{name}"
        if self.address.kind == "buckets":
            return f"{constants.ENDPOINT}/buckets/{self.address.repo}/resolve/{quote(path, safe='')}"
        return str(hf_hub_url(self.address.repo, path, repo_type="dataset", revision=self.address.revision))

    def heads(self) -> Mapping[str, Head]:
        """Name -> facts of every file of the place; asked for once."""
        if self._heads is None:
            address, asked_for = self.address, [("recursive", "true")]
            path = "" if address.revision is None else f"/{quote(address.revision, safe='')}"
            folder = f"/{quote(address.folder.rstrip('/'), safe='')}" if address.folder else ""
            found: dict[str, Head] = {}
            for _ in range(MAX_PAGES):
                asked = f"{address.kind}/{address.repo}/tree{path}{folder}"
                page, following = retrying(partial(_ask, self.place, asked, asked_for), waits_s=self.waits_s)
                found |= _heads(page, self.place, address.folder)
                if len(found) > MAX_LISTED:
                    break
                if following is None:
                    self._heads = found
                    return found
                asked_for = [("recursive", "true"), ("cursor", following)]
            raise ShardError(f"{self.place}: more than {MAX_LISTED:,} files or {MAX_PAGES:,} pages of them; no set has "
                             "as many")
        return self._heads

    def _part(self, name: str, start: int, stop: int, size: int) -> Iterator[bytes]:
        """One connection's bytes from `start`; `resumed` counts them."""
        where = self.describe(name)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with explained(where), self._answer(name, headers) as response:
            span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if response.status_code == 206 and read_count(total) not in (size, None):
                raise status_error(where, 412, advice=ADVICE)
            if (read_count(span.partition("-")[0]) if response.status_code == 206 else 0) != start:
                raise ServerError(f"{where}: a range was asked for, another came; a proxy before the hub is broken")
            yield from response.iter_raw()  # as it comes: pieces of a fixed size would be lost where it breaks

    @contextlib.contextmanager
    def _answer(self, name: str, headers: dict[str, str]) -> Iterator[Any]:
        """The open answer for a range of a file: from the content network where its address is known and still works,
        else by way of the hub. The token goes to the hub alone (the client drops it where it is sent elsewhere)."""
        signed = self._signed.get(name)
        if signed is not None:
            with session().stream("GET", signed, headers=headers, timeout=TIMEOUT_S) as response:
                if response.status_code == 206:
                    yield response
                    return
            self._signed.pop(name, None)
        url = self.url(name)
        with session().stream("GET", url, headers=_headers() | headers, timeout=TIMEOUT_S,
                                  follow_redirects=True) as response:
            hf_raise_for_status(response)
            told = {one.headers.get("X-Xet-Hash") for one in (*response.history, response)}
            if self.address.kind == "buckets" and told - {None, self.head(name).etag}:
                raise status_error(self.describe(name), 412, advice=ADVICE)
            if urlsplit(str(response.url)).netloc != urlsplit(url).netloc:
                self._signed[name] = str(response.url)
            yield response


def session() -> Any:
    """The client's own session, which does not wait for ever and logs no address with its signature."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_without_queries)
    found = get_session()
    if found.timeout.read is None:
        found.timeout = COMMIT_S
    return found


def _without_queries(record: logging.LogRecord) -> bool:
    record.msg, record.args = re.sub(r"\?[^\s'\"]+", "?...", record.getMessage()), ()
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The client's progress bars off for the block: ours says how far a push is."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


@contextlib.contextmanager
def explained(where: str, *, advice: str = ADVICE) -> Iterator[None]:
    """Turns the client's errors into those of `taro.shards.remote.bucket`, its texts left out: they quote addresses
    that may be signed. `advice`: how this machine is let in."""
    try:
        yield
    except ShardError:
        raise
    except _CAUGHT as error:
        # an upload's failure is the cause of the error that names its file
        raise _explanation(where, error.__cause__ if type(error) is RuntimeError else error, advice) from None


def _explanation(where: str, error: BaseException | None, advice: str) -> ShardError:
    """The error to raise in place of one of the client's."""
    if isinstance(error, HfHubHTTPError):
        return _of_answer(where, error, advice)
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(f"{where}: HF_HUB_OFFLINE forbids to ask the hub; unset it, or read a copy of the set "
                                "from a folder")
    if isinstance(error, OSError) and error.filename is not None:
        return ShardError(f"{error.filename}: cannot be opened ({error.strerror})")
    kind = "no reason given" if error is None else type(error).__name__
    if isinstance(error, _FAILURES):
        return UnreachableError(f"{where}: the hub cannot be reached, or the connection broke ({kind}); check the "
                                "network and HF_ENDPOINT", transient=True)
    return ServerError(f"{where}: the hub and huggingface_hub do not understand each other ({kind}); update "
                       "huggingface_hub, and check HF_ENDPOINT")


def _of_answer(where: str, error: HfHubHTTPError, advice: str) -> ShardError:
    """The error of a hub's answer, by the class that the client gave it."""
    if isinstance(error, GatedRepoError):
        return RefusedError(f"{where}: its owner lets in who asks; ask for access on its page, then log in with `hf "
                            "auth login`")
    if isinstance(error, RepositoryNotFoundError | BucketNotFoundError):
        return NoDatasetError(f"{where}: no such data set or bucket, or a private one; check its name. {advice}")
    if isinstance(error, RevisionNotFoundError):
        return RemoteError(f"{where}: no such revision; name a branch, a tag or a whole commit of the data set")
    if isinstance(error, EntryNotFoundError):
        return missing(where)
    headers = error.response.headers
    # RateLimit: "api";r=0;t=55: no request is left, in 55 s there are
    asked = read_count(headers.get("Retry-After", headers.get("RateLimit", "").replace(" ", "").rpartition(";t=")[2]))
    return status_error(where, error.response.status_code, advice=advice,
                        retry_after_s=None if asked is None else float(asked))


def api() -> HfApi:
    """The client, for its calls that write."""
    session()
    return HfApi(library_name="taro", library_version=__version__)


def _headers() -> dict[str, str]:
    return dict(build_hf_headers(library_name="taro", library_version=__version__))


def _ask(where: str, path: str, parameters: Sequence[tuple[str, str]]) -> tuple[Any, str | None]:
    """(JSON, cursor of the next page) of a call of the hub's API."""
    url, data = f"{constants.ENDPOINT}/api/{path}?{urlencode(parameters)}", bytearray()
    headers = _headers() | {"Accept-Encoding": "identity"}
    with explained(where), session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        for piece in response.iter_raw():
            data += piece
            if len(data) > MAX_PAGE_BYTES:
                raise ServerError(f"{where}: an answer of more than {MAX_PAGE_BYTES:,} bytes; check HF_ENDPOINT")
        link = response.links.get("next", {}).get("url", "")
    try:
        found = strict_json(bytes(data))
    except ValueError:
        raise ServerError(f"{where}: expected JSON from the hub, got something else; check HF_ENDPOINT, and whether a "
                          "proxy asks for a login") from None
    # Only the cursor is taken: the token goes to no other address than the hub's.
    return found, parse_qs(urlsplit(link).query).get("cursor", [None])[0]


def _heads(page: Any, place: str, folder: str) -> dict[str, Head]:
    """The files of one page of a listing, their names without the folder."""
    found = {}
    for entry in page if isinstance(page, list) else [None]:
        entry = entry if isinstance(entry, dict) else {}
        path, size, kind = entry.get("path"), entry.get("size"), entry.get("type")
        large = entry.get("lfs")
        etag = large.get("oid") if isinstance(large, dict) else entry.get("xetHash", entry.get("oid"))
        if kind == "directory":
            continue
        if not (kind == "file" and isinstance(path, str) and len(path) <= MAX_NAME and type(size) is int
                and 0 <= size < 2**63 and isinstance(etag, str) and len(etag) <= 128):
            raise ServerError(f"{place}: expected a listing of files, got something else; check HF_ENDPOINT")
        if path.startswith(folder):
            found[path.removeprefix(folder)] = Head(size, etag)
    return found
