"""The words of the command line that this process runs: what starts the same command again takes them from here."""

from __future__ import annotations

__all__ = ["WORDS"]

WORDS: list[str] = []
"""after `taro`; set by `taro.cli.app.main`"""
