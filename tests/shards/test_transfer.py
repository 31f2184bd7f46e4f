"""Push and pull between folders: what moves, what is refused, what a damaged or half set becomes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from taro.core.errors import ConfigError, ShardError
from taro.shards.format import CARD, MANIFEST
from taro.shards.manifest import build_manifest, read_manifest, write_manifest
from taro.shards.reader import open_shards
from taro.shards.store_local import LocalStore
from taro.shards.transfer.licences import LicenceError
from taro.shards.transfer.plan import OtherSetError
from taro.shards.transfer.pull import pull
from taro.shards.transfer.push import Choices, push
from taro.shards.transfer.receive import MARKER
from taro.shards.verify import verify
from tests.shards.helpers_sets import CLIP_NAME, FINGERPRINT, add_variants, fingerprint, write_set

FREE = Choices(i_may_share=True)
FEATURES, CLIP = f"features/{FINGERPRINT.name}", f"clip/{CLIP_NAME}"


def state(root: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A set of three slices with CLIP features."""
    write_set(tmp_path / "set", [[1, 2], [3], [4, 5]], clip=True)
    return tmp_path / "set"


def test_a_set_arrives_byte_for_byte_and_moves_once(whole: Path, tmp_path: Path) -> None:
    first = push(whole, str(tmp_path / "place"), FREE)
    assert state(tmp_path / "place") == state(whole) and first.moved_shards == 9
    assert first.moved_bytes == first.bytes == sum(map(len, state(whole).values())) and first.files == len(state(whole))
    again = push(whole, str(tmp_path / "place"), FREE)
    assert (again.moved, again.files, again.bytes) == ((), first.files, first.bytes)
    assert pull(str(tmp_path / "place"), tmp_path / "copy").moved == first.moved
    assert state(tmp_path / "copy") == state(whole) and pull(str(tmp_path / "place"), tmp_path / "copy").moved == ()


def test_a_dry_run_says_what_would_move_and_moves_nothing(whole: Path, tmp_path: Path) -> None:
    said = push(whole, str(tmp_path / "place"), Choices(i_may_share=True, dry_run=True))
    assert not (tmp_path / "place").exists() and said.dry_run
    assert said.moved == push(whole, str(tmp_path / "place"), FREE).moved
    assert pull(str(tmp_path / "place"), tmp_path / "copy", dry_run=True).moved == said.moved
    assert not (tmp_path / "copy").exists()


def test_kinds_are_left_out_and_come_later(whole: Path, tmp_path: Path) -> None:
    add_variants(whole)
    place, copy = str(tmp_path / "place"), tmp_path / "copy"
    push(whole, place, Choices(without=(FEATURES,), i_may_share=True))
    assert read_manifest(LocalStore(tmp_path / "place")).kinds == [CLIP, "paths"], "variants go with their features"
    assert verify(place).ok and verify(place).records == 5
    pull(place, copy, without=[CLIP])
    assert read_manifest(LocalStore(copy)).kinds == ["paths"] and verify(copy).ok
    later = push(whole, place, FREE)
    assert {Path(name).parts[0] for name, _ in later.moved} == {"features", "variants", CARD, MANIFEST}
    assert state(tmp_path / "place") == state(whole)
    assert pull(place, copy).moved_shards == 9 and state(copy) == state(whole)


def test_a_place_keeps_kinds_that_only_it_has(whole: Path, tmp_path: Path) -> None:
    """Two towers by two people over the same paths: each adds its own, whoever is second keeps the first's."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for root, digit in ((mine, "1"), (theirs, "2")):
        write_set(root, [[1, 2], [3]], encoders={"float32": fingerprint(digit)})
    place = tmp_path / "place"
    push(mine, str(place), FREE)
    added = push(theirs, str(place), FREE)
    assert added.moved_shards == 2 and verify(place).ok
    held = read_manifest(LocalStore(place))
    assert held.kinds == sorted([f"features/{fingerprint('1').name}", f"features/{fingerprint('2').name}", "paths"])
    assert push(mine, str(place), FREE).moved == (), "what one's own set lacks is no change"
    pull(str(place), mine)
    assert state(mine) == state(place)


def test_another_set_is_refused_and_nothing_changes(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    push(whole, str(place), FREE)
    before = state(place)
    write_set(tmp_path / "other", [[1, 2], [3], [4, 6]], clip=True)
    with pytest.raises(OtherSetError, match="another set lies there"):
        push(tmp_path / "other", str(place), FREE)
    with pytest.raises(OtherSetError, match="another set lies there"):
        pull(str(tmp_path / "other"), place)
    with pytest.raises(OtherSetError):
        push(whole, str(place), Choices(thumbnails=False, i_may_share=True))
    with pytest.raises(ConfigError, match="--replace needs a place"):
        push(tmp_path / "other", str(place), Choices(i_may_share=True, replace=True))
    assert state(place) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("of years")
    with pytest.raises(ShardError, match="a folder with other files"):
        pull(str(place), tmp_path / "notes")
    assert state(tmp_path / "notes") == {"thesis.txt": b"of years"}
    with pytest.raises(ConfigError, match="another place than the set's own"):
        push(whole, str(whole / "inside"), FREE)


def test_without_thumbnails_no_jpeg_leaves_and_all_else_does(whole: Path, tmp_path: Path) -> None:
    done = push(whole, str(tmp_path / "place"), Choices(thumbnails=False, i_may_share=True))
    bare = open_shards(tmp_path / "place")
    assert verify(tmp_path / "place").ok and bare.manifest.config["thumbnails"] is False
    assert all(bare.thumbnail(key) is None and bare.clip(key) == open_shards(whole).clip(key) for key in bare.keys)
    assert done.moved_shards == 9 and push(whole, str(tmp_path / "place"), Choices(
        thumbnails=False, i_may_share=True)).moved == ()
    assert {name for name, data in state(tmp_path / "place").items() if b"\xff\xd8\xff" in data} == set()


def test_licences_decide_unless_the_user_does(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(LicenceError, match=r"videos: unknown .not a licence that taro knows"):
        push(whole, str(tmp_path / "place"))
    manifest = read_manifest(LocalStore(whole))

    def say(**licences: str) -> None:
        source = manifest.provenance.model_copy(update={f"licence_{what}": text for what, text in licences.items()})
        write_manifest(whole, manifest.model_copy(update={"provenance": source}))

    say(videos="no redistribution", annotations="CC-BY-4.0", captions="Apache-2.0")
    with pytest.raises(LicenceError, match=r"videos: no redistribution .this forbids it.\n  annotations: CC-BY-4.0\n"):
        push(whole, str(tmp_path / "place"))
    assert not (tmp_path / "place").exists()
    say(videos="CC-BY-4.0; CC0-1.0", annotations="CC-BY-4.0", captions="Apache-2.0")
    push(whole, str(tmp_path / "place"))
    say(videos="CC-BY-SA-4.0", annotations="CC-BY-4.0", captions="Apache-2.0")
    assert [name for name, _ in push(whole, str(tmp_path / "place")).moved] == [CARD, MANIFEST], "as the set says now"
    assert "CC-BY-SA-4.0" in (tmp_path / "place" / CARD).read_text()


def test_a_damaged_set_does_not_leave(whole: Path, tmp_path: Path) -> None:
    shard = whole / "paths" / "paths-000001.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"paths-000001\.tar: what came is not what the manifest says"):
        push(whole, str(tmp_path / "place"), FREE)
    assert not (tmp_path / "place" / MANIFEST).exists() and (tmp_path / "place" / MARKER).exists()
    assert not (tmp_path / "place" / "paths" / "paths-000001.tar").exists()
    shard.write_bytes(data[:-10240])
    with pytest.raises(ShardError, match=r"paths-000001\.tar: .* bytes expected, the file ends before"):
        push(whole, str(tmp_path / "place"), FREE)


def test_what_is_damaged_here_comes_again_and_what_was_begun_is_gone_on_with(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    pull(str(whole), copy)
    name = f"{FEATURES}/features-000001.tar"
    (copy / name).write_bytes(b"short")
    assert [one for one, _ in pull(str(whole), copy).moved] == [name, CARD, MANIFEST]
    assert state(copy) == state(whole)
    (copy / MANIFEST).unlink()
    (copy / name).unlink()
    (copy / MARKER).touch()
    (copy / f"{FEATURES}/.features-000001.tar.pull.tmp").write_bytes((whole / name).read_bytes()[:4000])
    done: list[int] = []
    pull(str(whole), copy, progress=lambda now: done.append(now.bytes))
    assert done[-1] == (whole / name).stat().st_size - 4000, "only what was lacking came"
    assert state(copy) == state(whole)
    (copy / name).unlink()
    (copy / f"{FEATURES}/.features-000001.tar.pull.tmp").write_bytes(b"of another set")
    pull(str(whole), copy)
    assert state(copy) == state(whole), "what was begun of other bytes begins again"


def test_a_transfer_killed_while_it_claimed_its_folder_goes_on(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / f".{MARKER}.tmp").touch()
    push(whole, str(tmp_path / "place"), FREE)
    assert state(tmp_path / "place") == state(whole)
    (tmp_path / "place" / MARKER).touch()  # killed between the manifest and the end
    (tmp_path / "place" / "paths" / ".paths-000001.tar.pull.tmp").touch()
    assert not push(whole, str(tmp_path / "place"), FREE).moved
    assert state(tmp_path / "place") == state(whole) and not (tmp_path / "place" / MARKER).exists()


@pytest.mark.parametrize("grown", [False, True])
def test_what_a_broken_pull_brought_of_another_set_is_removed(whole: Path, tmp_path: Path, *, grown: bool) -> None:
    """Kinds that are not wanted any more, and shards that the place does not have any more. `grown`: into a folder that
    holds a set already."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    if grown:
        pull(str(whole), copy, without=[CLIP, FEATURES])
    (whole / f"{FEATURES}/features-000002.tar").rename(tmp_path / "aside")
    with pytest.raises(ShardError, match=r"features-000002\.tar: missing"):
        pull(str(whole), copy, jobs=1)
    assert (copy / f"{CLIP}/clip-000001.tar").exists() and (copy / f"{FEATURES}/features-000000.tar").exists()
    write_set(other, [[1, 2], [3]])
    if grown:
        (copy / f"{CLIP}/mine.txt").touch()
        pull(str(whole), copy, without=[FEATURES])
        (copy / f"{CLIP}/mine.txt").unlink()  # what nobody pulled stays
        expected = {name for name in state(whole) if not name.startswith("features")}
        assert {*state(copy)} == expected and not (copy / "features").exists() and verify(copy).ok
    else:
        pull(str(other), copy)
        assert state(copy) == state(other) and verify(copy).ok


def test_a_set_that_lost_its_rows_count_is_another(whole: Path, tmp_path: Path) -> None:
    """The same paths, other skipped rows: the place's manifest and table stay one."""
    place = tmp_path / "place"
    push(whole, str(place), FREE)
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    held = read_manifest(LocalStore(other))
    write_manifest(other, build_manifest(other, inputs=13, skipped=3, captions=15, name="tiny", taro_version="0",
                                         encoders=held.encoders, clip_encoders=held.clip_encoders))
    with pytest.raises(OtherSetError, match="10 queries and 1 skipped rows, this set 10 and 3"):
        push(other, str(place), FREE)
