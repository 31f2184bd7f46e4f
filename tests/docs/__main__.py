"""Runs the pages of docs/ and, with --update, writes their outputs anew.

    python -m tests.docs [--update] [PAGE ...]

What a page shows is then to be read: an update makes a page agree with the program, not right.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Runs the pages named (all of them by default); 1 where one was not right and was left so."""
    for name, value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("NO_COLOR", "1"),
                        ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    from tests.docs.runner import START, pages_that_run, run_page

    words = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__.splitlines()[0])
    words.add_argument("--update", action="store_true", help="write outputs anew")
    words.add_argument("pages", nargs="*", type=Path, help="pages; all by default")
    asked = words.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="taro-docs-") as folder:
        start = Path(folder, "start")
        start.mkdir()
        for page in [START, *([one.resolve() for one in asked.pages] or pages_that_run())]:
            at = start if page == START else Path(folder, page.stem)
            if at != start:
                shutil.copytree(start, at, symlinks=True, dirs_exist_ok=True)
            began = time.monotonic()
            ran, held, wrong = run_page(page, at, update=asked.update)
            state = "updated" if wrong and asked.update else "WRONG" if wrong else "right"
            print(f"{page.name}: {ran} blocks, {held} outputs, {time.monotonic() - began:.1f} s, {state}", flush=True)
            for said in wrong:
                print("  " + said.replace("\n", "\n  "), flush=True)
            failed = failed or (bool(wrong) and not asked.update)
            if page == START and not Path(start, "run", "export").is_dir():
                return 1
            if at != start:
                shutil.rmtree(at)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
