"""Pages of a set of many clips: how long they take to write, in how much memory, and how long a keystroke takes.

    python benchmarks/view.py --clips 10000 --out pages-of-10000

Makes a synthetic set (two queries a clip, contact sheets of 7 KB), writes its pages in a process of its own, opens them
in headless Chromium, where that is installed, and types into the search. The time of a keystroke is that of the page's
own work: search, drawing and layout."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

__all__ = ["main", "make", "write"]

REPEATS = 7
TYPED = ["t", "th", "the", "the ", "the b", "the blue", "the blue 9", "999", "zzz", ""]
KEYSTROKES = """const field = document.getElementById("text"), spent = [];
for (const value of arguments[0]) {
  const began = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true}));
  document.body.getBoundingClientRect();
  spent.push([value, Math.round(performance.now() - began), document.getElementById("count").textContent]);
}
return spent;"""


def make(root: Path, clips: int) -> None:
    """A set of that many clips, two queries each, in slices of 1,000."""
    from taro.shards.manifest import build_manifest, write_manifest
    from taro.shards.writer import SliceWriter
    from tests.report.synthetic import clip_record, sheet

    sheets = [sheet(number) for number in range(10)]
    for start in range(0, clips, 1000):
        with SliceWriter(root, start // 1000, kinds=("paths",)) as writer:
            for number in range(start, min(start + 1000, clips)):
                one = clip_record(number % 200)
                queries = [query.model_copy(update={"id": f"{number}-{place}", "text": f"{query.text} {number}",
                                                    "difficulty": float(number % 100)})
                           for place, query in enumerate(one.queries)]
                writer.add_clip(one.model_copy(update={"key": f"clip-{number:06d}", "queries": queries}),
                                sheets[number % 10], {}, {})
            writer.commit()
    write_manifest(root, build_manifest(root, inputs=2 * clips, skipped=0, captions=4 * clips, name="synthetic"))


def write(root: Path, out: Path) -> None:
    """Writes the pages; prints seconds, the peak of memory and the size of the folder as JSON."""
    from taro.shards.reader import open_shards
    from taro.shards.view import view

    open_shards(root)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.monotonic(), time.process_time()
    made = view(root, out)
    seconds, processor_s = time.monotonic() - began, time.process_time() - used
    files = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    print(json.dumps({"clips": made.clips, "queries": made.queries, "seconds": round(seconds, 1),
                      "processor_s": round(processor_s, 1),
                      "clips_per_s": round(made.clips / seconds), "files": len(files), "bytes": sum(files),
                      "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                      "peak_mib_open": before_kib // 1024}))


def main() -> None:
    """Makes the set, writes the pages, types."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--clips", type=int, default=10_000)
    words.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    words.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    asked = words.parse_args()
    root, pages = asked.out / "set", asked.out / "pages"
    if asked.write:
        write(root, pages)
        return
    asked.out.mkdir()
    make(root, asked.clips)
    subprocess.run([sys.executable, __file__, "--write", "--out", str(asked.out)], check=True)
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("no Chromium here: nothing was typed")
        return
    from tests.pages.browser import browser

    with browser(asked.out) as window:
        window.resize(1400)
        began = time.monotonic()
        window.open(pages / "index.html")
        print(f"opened in {time.monotonic() - began:.1f} s")
        runs = [window.run(KEYSTROKES, TYPED) for _ in range(REPEATS)]
        for index, value in enumerate(TYPED):
            spent = sorted(run[index][1] for run in runs)
            print(f"{value!r}: median {spent[REPEATS // 2]} ms, {spent[0]} to {spent[-1]}, {runs[0][index][2]}")


if __name__ == "__main__":
    main()
