"""The commands of `taro`, one module each: thin, they read arguments, call a stage and print what came of it.

Only these modules (and `taro/cli.py`) may import a stage, and only inside their functions; `taro.cli.COMMANDS` names
them, so that `taro --help` imports none.
"""

from __future__ import annotations

__all__: list[str] = []
