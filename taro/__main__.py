"""The `taro` command as a process; `python -m taro ...` is `taro ...` (torchrun starts it so)."""

from __future__ import annotations

import sys

from taro.cli.signals import INTERRUPTED, stop_code, stoppable

__all__ = ["run"]


def run() -> None:
    """Runs the command line of this process, ready for signals before anything else is imported."""
    with stoppable(to_the_end=True):
        try:
            from taro.cli.app import main

            main()
        except KeyboardInterrupt:
            sys.stderr.write(f"\n{INTERRUPTED}\n")
            sys.exit(stop_code() or 130)


if __name__ == "__main__":
    run()
