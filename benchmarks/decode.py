"""PyAV against decord on real files: seconds to decode the sampled frames of a clip, and whether the frames agree.

Both go through `preprocess.decode.decode_clip` in this process, in turn; decord is asked only for files on which it is
known to be right and falls back to PyAV elsewhere (the column `used` says so). Left out: the pool's processes.

    python benchmarks/decode.py FOLDER_OF_VIDEOS
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from preprocess.decode import DecodeJob, Frames, decode_clip
from taro.errors import VideoError
from taro.features import FrameSampling


def measure(path: Path, decoder: str, repeats: int) -> tuple[float, Frames]:
    """Median seconds and the frames. Raises VideoError."""
    job = DecodeJob(path, FrameSampling(), decoder=decoder)  # type: ignore[arg-type]
    frames, seconds = decode_clip(job), []
    for _ in range(repeats):
        start = time.perf_counter()
        frames = decode_clip(job)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), frames


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
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
