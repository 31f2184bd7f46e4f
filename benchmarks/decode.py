"""PyAV against decord on real files: seconds to decode the sampled frames of a clip, and whether the frames agree.

Both go through `taro.preprocess.video.decode.decode_clip` in this process, in turn; decord is asked only for files on
which it is known to be right and falls back to PyAV elsewhere (the column `used` says so). Left out: the pool's
processes.

With --check: for every file, every decoder, and the whole file as well as four cuts of it, whether frames (byte by
byte) and times are those of a plain decode from the start (tests/helpers_plain_decode.py, none of our code); exit code
1 where one is not. `--check --odd FOLDER` first writes the odd videos of tests/helpers_odd_videos.py there.

    python benchmarks/decode.py FOLDER_OF_VIDEOS
    python benchmarks/decode.py --check FOLDER_OF_VIDEOS
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from taro.core.errors import VideoError
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import DecodeJob, Frames, decode_clip
from tests.helpers_odd_videos import ODD
from tests.helpers_plain_decode import DECODERS, cuts, decode_from_start, verdict


def measure(path: Path, decoder: str, repeats: int) -> tuple[float, Frames]:
    """Median seconds and the frames. Raises VideoError."""
    job = DecodeJob(path, FrameSampling(), decoder=decoder)  # type: ignore[arg-type]
    frames, seconds = decode_clip(job), []
    for _ in range(repeats):
        start = time.perf_counter()
        frames = decode_clip(job)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), frames


def check(folder: Path) -> bool:
    """Prints who decoded each clip of each file, or what is wrong; whether all are right."""
    right = total = 0
    print(f"{'file':36} {'frames':>6} {'decoder':>8}  whole | 0-40 % | 33-71 % | 80-99.9 % | less than a frame")
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        plain = decode_from_start(path)
        for decoder in DECODERS:
            found = [verdict(path, plain, decoder, cut) for cut in cuts(plain)]
            print(f"{path.name[:36]:36} {len(plain.frames):6} {decoder:>8}  {' | '.join(found)}", flush=True)
            right += sum(not word.startswith("WRONG") for word in found)
            total += len(found)
    print(f"{right} of {total} right")
    return right == total


def write_odd(folder: Path) -> None:
    """Writes every odd video, and what it was made from to a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in ODD.items():
            shutil.copyfile(make(Path(scratch)), folder / name)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--odd", action="store_true")
    args = parser.parse_args()
    if args.odd:
        write_odd(args.folder)
    if args.check:
        sys.exit(not check(args.folder))
    print(f"{'file':28} {'size':>10} {'frames':>6} {'pyav s':>8} {'decord s':>8} {'used':>7}  equal")
    for path in sorted(p for p in args.folder.iterdir() if p.is_file()):
        try:
            pyav_s, plain = measure(path, "pyav", args.repeats)
            decord_s, other = measure(path, "decord", args.repeats)
        except VideoError as error:
            print(f"{path.name:28} skipped: {error.reason}")
            continue
        same = plain.facts.frames_sha256 == other.facts.frames_sha256
        size = f"{plain.facts.width}x{plain.facts.height}"
        print(f"{path.name:28} {size:>10} {len(plain.times_s):6} {pyav_s:8.2f} {decord_s:8.2f} "
              f"{other.facts.decoder:>7}  {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
