"""Keys, passwords and signed addresses: in no message, log, manifest or folder that taro writes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taro.core.errors import ConfigError, MissingPackageError, ShardError
from taro.shards.places import open_store
from taro.shards.reader import open_shards
from taro.shards.remote.http import HttpBucket
from taro.shards.remote.objects import ObjectBucket
from taro.train.config import ShardSource
from tests.shards.helpers_http import answer, serving
from tests.shards.helpers_sets import write_set
from tests.shards.remote.helpers_remote import KEY, SECRET, rclone_s3

PASSWORD, SIGNATURE = "a-password-of-somebody", "X-Amz-Signature=0123456789abcdef"


@pytest.mark.parametrize("place", [
    f"https://somebody:{PASSWORD}@host.example/set", f"https://host.example/set?{SIGNATURE}",
    f"https://host.example/set#{SIGNATURE}", f"s3://{KEY}:{PASSWORD}@bucket/set", f"s3://bucket/set?{SIGNATURE}",
    f"gs://bucket/set?{SIGNATURE}", f"az://container/set?{SIGNATURE}"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(place: str) -> None:
    for use in (open_store, lambda text: ShardSource(path=text)):
        with pytest.raises((ShardError, ConfigError)) as raised:
            use(place)
        said = str(raised.value)
        assert "without a" in said and "written into" in said
        assert PASSWORD not in said and "0123456789abcdef" not in said and KEY not in said


def test_nothing_that_is_printed_or_kept_holds_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names and passwords that work, a redirect to a signed address, and refusals that quote it all."""
    caplog.set_level(logging.DEBUG)
    write_set(tmp_path / "served" / "set", [[1, 2], [3]])
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login somebody password {PASSWORD}\n")
    (tmp_path / "netrc").chmod(0o600)
    environment = {**os.environ, "NETRC": str(tmp_path / "netrc"), "TARO_CACHE": str(tmp_path / "out" / "cache"),
                   "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ACCESS_KEY_ID": KEY}
    said = []
    with serving(tmp_path / "served") as web:
        def taro(*line: str) -> None:
            done = subprocess.run([sys.executable, "-m", "taro", *line], env=environment, capture_output=True,
                                  text=True, timeout=600, check=False)
            said.append(done.stdout + done.stderr)

        signed = {"Location": f"/set/manifest.json?{SIGNATURE}"}
        quoted = f"<p>{SIGNATURE} {PASSWORD} {SECRET}</p>".encode()
        web.faults = [answer(302, signed)]
        taro("shards", "filter", f"{web.url}/set", str(tmp_path / "out" / "part"), "--split", "train", "--debug")
        web.faults = [answer(403, {"Location": f"?{SIGNATURE}"}, quoted, method=method) for method in ("HEAD", "GET")]
        taro("shards", "info", f"{web.url}/set", "--debug")
    taro_s3 = [sys.executable, "-m", "taro", "shards", "verify"]
    with rclone_s3(tmp_path / "rclone") as url:
        done = subprocess.run([*taro_s3, f"{url}/set"], capture_output=True, text=True, timeout=600, check=False,
                              env={**environment, **{k: os.environ[k] for k in ("AWS_ENDPOINT_URL", "AWS_REGION")},
                                   "AWS_SECRET_ACCESS_KEY": PASSWORD})
        said.append(done.stdout + done.stderr)
    assert "refused (status 403)" in said[1] and "refused (status 403)" in said[2]
    assert (tmp_path / "out" / "part" / "manifest.json").is_file()
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    everything = [text.encode() for text in (*said, caplog.text)] + written
    assert len(written) > 5
    for secret in (PASSWORD, SIGNATURE, SECRET, KEY, "c29tZWJvZHk6"):
        assert not any(secret.encode() in one for one in everything), secret


def test_buckets_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShardError, match="expected an address such as"):
        HttpBucket("https://")
    with pytest.raises(ShardError, match="expected s3://BUCKET/FOLDER"):
        ObjectBucket("s3://")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'taro-vtg\[remote\]'"):
        open_shards("s3://bucket/set")
