"""Push to and pull from object stores and web servers on loopback: what moves, what is refused, what leaves."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from taro.core.errors import ShardError
from taro.shards.format import CARD, MANIFEST, SKIPPED
from taro.shards.manifest import build_manifest, read_manifest, read_skipped, write_manifest, write_skipped
from taro.shards.remote.objects import ObjectBucket
from taro.shards.store_local import LocalStore
from taro.shards.transfer.bucket_target import BucketTarget, ChangedTargetError
from taro.shards.transfer.outgoing import outgoing
from taro.shards.transfer.plan import OtherSetError
from taro.shards.transfer.pull import pull
from taro.shards.transfer.push import Choices, push
from taro.shards.verify import verify
from tests.shards.helpers_http import cut, serving
from tests.shards.helpers_sets import CLIP_NAME, FINGERPRINT, fingerprint, write_set
from tests.shards.remote.helpers_remote import KEY, SECRET, moto_s3, rclone_s3
from tests.shards.test_transfer import state

FREE = Choices(i_may_share=True)
FEATURES = f"features/{FINGERPRINT.name}"


@pytest.fixture(scope="module", params=["moto", "rclone"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a bucket on loopback."""
    with moto_s3() if request.param == "moto" else rclone_s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A set of three slices with CLIP features."""
    write_set(tmp_path / "set", [[1, 2], [3], [4, 5]], clip=True)
    return tmp_path / "set"


def objects(place: str) -> dict[str, bytes]:
    """Every object below a place."""
    store = ObjectBucket(place)
    return {one.name: b"".join(store.chunks(one.name, 0, one.size)) for one in store.list()}


def _written(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_a_set_goes_to_an_object_store_once_and_comes_back(bucket: str, whole: Path, tmp_path: Path) -> None:
    place = f"{bucket}/round"
    first = push(whole, place, FREE)
    assert objects(place) == state(whole) and first.moved_bytes == sum(map(len, state(whole).values()))
    assert push(whole, place, FREE).moved == ()
    assert pull(place, tmp_path / "copy").moved_shards == 9 and state(tmp_path / "copy") == state(whole)
    assert pull(place, tmp_path / "copy").moved == () and verify(tmp_path / "copy").ok


def test_a_push_that_ended_early_goes_on(bucket: str, whole: Path) -> None:
    """Without a manifest a shard counts where its own sidecar lies there; another set's leavings are replaced."""
    place, store = f"{bucket}/half", ObjectBucket(f"{bucket}/half")
    names = [f"{FEATURES}/features-000000.tar", f"{FEATURES}/features-000000.json", "paths/paths-000001.tar"]
    for name in names:
        store.put(name, whole / name, absent=True)
    (whole.parent / "other.tar").write_bytes(bytes((whole / "paths/paths-000002.tar").stat().st_size))
    store.put("paths/paths-000002.tar", whole.parent / "other.tar", absent=True)
    store.put("paths/paths-000002.json", whole / "paths/paths-000001.json", absent=True)
    moved = {name for name, _ in push(whole, place, FREE).moved}
    assert objects(place) == state(whole) and not {*names[:2]} & moved and {names[2], "paths/paths-000002.tar"} <= moved


def test_a_place_of_an_object_store_only_grows(bucket: str, whole: Path, tmp_path: Path) -> None:
    place = f"{bucket}/grows"
    push(whole, place, Choices(without=(FEATURES,), i_may_share=True))
    later = push(whole, place, FREE)
    assert {Path(name).parts[0] for name, _ in later.moved} == {"features", CARD, MANIFEST}
    write_set(tmp_path / "tower", [[1, 2], [3], [4, 5]], encoders={"float32": fingerprint("1")})
    assert push(tmp_path / "tower", place, FREE).moved_shards == 3
    pull(place, tmp_path / "copy")
    assert read_manifest(LocalStore(tmp_path / "copy")).kinds == sorted([
        f"clip/{CLIP_NAME}", FEATURES, f"features/{fingerprint('1').name}", "paths"])  # fmt: skip
    assert verify(tmp_path / "copy").ok
    before = objects(place)
    write_set(tmp_path / "other", [[1, 2], [3], [4, 6]], clip=True)
    with pytest.raises(OtherSetError, match="another set lies there"):
        push(tmp_path / "other", place, FREE)
    assert objects(place) == before


def test_two_pushes_at_once_do_not_make_one_set_of_two(bucket: str, whole: Path, tmp_path: Path) -> None:
    place = f"{bucket}/twice"
    write_set(tmp_path / "other", [[1, 2], [3], [4, 6]], clip=True)
    target = BucketTarget(ObjectBucket(place))
    target.have()
    (tmp_path / "scratch").mkdir()
    bundle = outgoing(LocalStore(tmp_path / "other"), tmp_path / "scratch")
    files = [*map(bundle.file, bundle.files), *bundle.about(bundle.manifest)]
    push(whole, place, FREE)
    with pytest.raises(ChangedTargetError):
        target.send(files, [], lambda files, moved: None)
    assert objects(place) == state(whole), "who came second changed nothing of what the manifest names"


def test_a_web_server_that_cuts_connections_gives_the_whole_set(whole: Path, tmp_path: Path) -> None:
    with serving(whole) as web:
        web.faults += [cut(3000, of="features-000000.tar"), cut(0, of="paths-000001.tar"), cut(100, of="manifest.json")]
        done = pull(web.url, tmp_path / "copy")
        assert state(tmp_path / "copy") == state(whole) and not web.faults
        assert "bytes=3000-10239" in web.fetched("features-000000.tar"), "it went on where it was cut"
        before = len(web.asked)
        assert pull(web.url, tmp_path / "copy").moved == () and done.moved_shards == 9
        assert {path for method, path, _ in web.asked[before:] if method == "GET"} == {"/manifest.json"}
        with pytest.raises(ShardError, match="sets are pushed to folders"):
            push(whole, web.url, FREE)


def test_a_damaged_place_gives_no_set(whole: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    pull(str(whole), served)
    (served / "paths" / "paths-000001.tar").write_bytes(bytes(10240))
    with serving(served) as web, pytest.raises(ShardError, match="what came is not what the manifest says"):
        pull(web.url, tmp_path / "copy")
    assert not (tmp_path / "copy" / MANIFEST).exists() and not (tmp_path / "copy/paths/paths-000001.tar").exists()
    pull(str(whole), tmp_path / "copy")
    assert state(tmp_path / "copy") == state(whole)


def test_nothing_of_this_machine_leaves(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that may hold a path, a host, a user or a key holds one; no object has its bytes."""
    host, user, planted = socket.gethostname(), getpass.getuser(), "planted-secret-8f31"
    signed = f"https://files.corp.example/videos/a.mp4?X-Amz-Signature={planted}"
    monkeypatch.setenv("TEAM_API_TOKEN", planted)
    where = f"{whole}/videos/gone.mp4"
    held = read_manifest(LocalStore(whole))
    write_skipped(whole, [{"row_id": "0", "line": 0, "video": where, "key": "", "stage": "plan", "reason": "missing",
                           "detail": f"{where}: no such file ({signed}) on machine-{planted}", "transient": False}])
    write_manifest(whole, build_manifest(
        whole, inputs=11, skipped=1, captions=15, name=f"from {whole}", taro_version="0",
        encoders=[held.encoders[0].model_copy(update={"model_id": f"{whole}/weights/tiny"})],
        clip_encoders=[held.clip_encoders[0].model_copy(update={"model": f"{Path.home()}/deep/er/vit"})],
        captioner={"prompt": f"as in {signed}", "by": f"someone@{host}:{whole}", "list": [where, {"a": where}]},
        versions={"av": f"18 ({whole})"}, config={"thumbnails": True, "token": planted},
        provenance=held.provenance.model_copy(update={"annotations_file": where, "licence_videos": signed})))
    (whole / "notes.txt").write_text(planted)
    (whole / "paths" / ".paths-000009.tar.tmp").write_text(planted)
    with moto_s3() as url:
        push(whole, f"{url}/clean", FREE)
        sent = objects(f"{url}/clean")
        assert push(whole, f"{url}/clean", FREE).moved == (), "what leaves is the same every time"
    hunted = [str(whole), str(whole.parent), str(Path.home() / "deep"), planted, KEY, SECRET, "corp.example", "X-Amz",
              f"@{host}", *([host] if len(host) > 3 else []), *([user] if user != "root" else [])]
    rows = read_skipped(LocalStore(_written(tmp_path / "sent", sent)))
    sent[SKIPPED] += json.dumps(rows).encode()  # its pages may be compressed
    found = [(name, text) for name, data in sent.items() for text in hunted if text.encode() in data]
    assert found == [] and set(sent) == set(state(whole)) - {"notes.txt", "paths/.paths-000009.tar.tmp"}
    assert rows[0]["detail"].startswith("gone.mp4: no such file")
    assert json.loads(sent[MANIFEST])["encoders"][0]["model_id"] == "tiny"
    assert os.environ["TEAM_API_TOKEN"] == planted
