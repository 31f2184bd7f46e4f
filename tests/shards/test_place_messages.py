"""Places as users write them, and keys: no message and no set that leaves repeats a secret, and no command takes a URL
for a folder to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taro.core.errors import ConfigError, ShardError
from taro.core.places import shown_place
from taro.pages.folder import page_folder
from taro.sandbox.make import make_sandbox
from taro.shards.index_build import add_index
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_split
from taro.shards.places import open_store
from taro.shards.reader import open_shards
from taro.shards.transfer.pull import pull
from taro.shards.transfer.push import Choices, push
from taro.shards.transfer.redact import redacted
from taro.shards.view import view
from taro.train.config import TrainConfig
from tests.shards.helpers_sets import write_set

SECRET = "sesame"
FREE = Choices(i_may_share=True)
READS: dict[str, Callable[[str], object]] = {
    "open": open_store, "pull": lambda place: pull(place, "copy"), "index": add_index,
    "push": lambda place: push("set", place, FREE), "push from": lambda place: push(place, "copy", FREE),
    "replace": lambda place: push("set", place, Choices(i_may_share=True, replace=True))}
WRITES: dict[str, Callable[[str], object]] = {
    "filter": lambda out: filter_set(open_shards("set"), Path(out), Selection(split="train")),
    "split": lambda out: split_by_split(open_shards("set"), Path(out)),
    "merge": lambda out: merge_sets([open_shards("set"), open_shards("set")], Path(out)),
    "view": lambda out: view("set", Path(out)), "pull": lambda out: pull("set", Path(out)),
    "pages": lambda out: page_folder(Path(out)).__enter__(), "world": lambda out: make_sandbox(Path(out), videos=1),
    "settings": lambda out: TrainConfig.model_validate({"out": out})}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set."""
    root = tmp_path_factory.mktemp("made") / "set"
    write_set(root, [[1]])
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that one stands in, with a set in `set`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(made)
    return tmp_path


@pytest.mark.parametrize("place", [
    f"https://me:{SECRET}@host.example/set?sig={SECRET}", f"HTTPS://host.example/set?sig={SECRET}",
    f"http://me:{SECRET}@[bad/set", f"s3://[{SECRET}@x/set?{SECRET}", f"http://me:{SECRET}@ho\u2100st/set",
    f"ftp://me:{SECRET}@host.example/set", f"ftp://me:{SECRET}/x@host.example/set",
    f"hf://datasets/a/b?token={SECRET}", f"hf://me:{SECRET}@datasets/a/b/c", f"hf://models/a/b#{SECRET}"])
@pytest.mark.parametrize("what", READS)
def test_no_message_repeats_a_secret(here: Path, what: str, place: str) -> None:
    with pytest.raises((ShardError, ConfigError)) as raised:
        READS[what](place)
    assert SECRET not in str(raised.value), str(raised.value)
    assert [path.name for path in here.iterdir()] == ["set"], "nothing was written"


@pytest.mark.parametrize("out", ["s3://bucket/set", "HF://datasets/a/b", "https://host.example/x"])
@pytest.mark.parametrize("what", WRITES)
def test_a_url_is_no_folder_to_write(here: Path, what: str, out: str) -> None:
    with pytest.raises(ConfigError, match="expected a file or folder of this machine"):
        WRITES[what](out)
    assert [path.name for path in here.iterdir()] == ["set"]


def test_a_place_is_shown_as_far_as_it_tells_nothing() -> None:
    for place in ("sets/train", "/a/b@c?d", "hf://datasets/a/b@v1", "s3://bucket/a b", "C/x:y@z"):
        assert shown_place(place) == place


@pytest.mark.parametrize("secret", [
    "hf_abcdefghijklmnopqrstuvwx", "AKIAIOSFODNN7EXAMPLE", "sk-ant-api03-abcdefghijklmnopqrstu",
    "ghp_abcdefghijklmnopqrstuvwxyz", "github_pat_11ABCDEFG0123456789abc", "glpat-abcdefghijklmnopqrst",
    "xoxb-123456789012-abcdefghijkl", "AIzaSyA1234567890abcdefghijklmnopqrstuv", "10.0.3.17:8080",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"])
def test_well_known_forms_of_keys_do_not_leave(secret: str) -> None:
    for text in (secret, f"no video ({secret}): gone"):
        assert redacted(text) == text.replace(secret, "[redacted]") == redacted(redacted(text))


@pytest.mark.parametrize("text", [
    "password: sesame", "api_key=sesame", '{"access_token": "sesame", "a": 1}', "secret = 'sesame'", "x?sig=sesame&a"])
def test_what_is_called_a_password_does_not_leave(text: str) -> None:
    assert SECRET not in redacted(text) and redacted(redacted(text)) == redacted(text)


def test_what_tells_nothing_stays() -> None:
    for text in ("9.1.0.70", "unexpected token", "keyframes: 12", "the secret door opens", "2:10:30", "step 1.2.3"):
        assert redacted(text) == text
