"""Figures that others published on the benchmarks that taro reads, to stand beside a score in the same table.

They are printed only where the annotations are those of the benchmark (its name and its number of queries), under a
line that says where they come from. R1 at 0.3, 0.5 and 0.7 in percent, None where nothing was published. Spread between
runs is large (three runs of one recipe differ by up to 7.6 points on QVHighlights): a difference smaller than that says
nothing, and neither do figures that were made under another protocol.

Left out: figures after fine-tuning on the benchmark itself. Source: the TaRO paper (arXiv 2606.09248), and evaluations
of its released weights by others."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PUBLISHED", "Figures", "published_for", "published_table"]

Figures = tuple[float | None, float | None, float | None]
"""R1 at 0.3, 0.5 and 0.7, percent"""

QWEN, TIME_R1, TARO = "Qwen2.5-VL-7B", "Time-R1-7B", "TaRO-7B, paper"
AGAIN, SPREAD, TARO_8B = "TaRO-7B, by others", "TaRO-7B, mean of 3 runs by others", "TaRO-8B (Qwen3-VL)"

PUBLISHED: dict[tuple[str, int], dict[str, Figures]] = {
    ("charades-sta", 3_720): {QWEN: (72.5, 53.6, 28.5), TIME_R1: (78.1, 60.8, 35.3), TARO: (None, 64.8, None),
                              AGAIN: (79.3, 63.3, 36.7), SPREAD: (79.0, 62.8, 35.6), TARO_8B: (82.9, 67.0, 37.7)},
    ("activitynet", 17_505): {QWEN: (24.4, 13.6, 6.7), TIME_R1: (58.6, 39.0, 21.4), TARO: (None, 39.8, None),
                              AGAIN: (61.0, 39.7, 20.5), SPREAD: (58.2, 38.2, 19.6), TARO_8B: (58.0, 39.8, 23.9)},
    ("qvhighlights", 1_550): {QWEN: (15.9, 7.1, 4.2), TIME_R1: (80.3, 66.2, 44.8), TARO: (None, 69.4, None),
                              AGAIN: (81.7, 66.8, 45.3), SPREAD: (78.7, 63.2, 41.4), TARO_8B: (83.2, 68.7, 51.7)},
    ("tvgbench", 800): {QWEN: (None, 20.0, None), TIME_R1: (41.8, 29.4, None), TARO: (54.6, 37.8, None)},
}
"""(dataset, queries of its benchmark) -> model -> figures"""


def published_for(dataset: str, lines: int) -> Mapping[str, Figures]:
    """The published figures for a dataset of `lines` annotated queries; {} where it is no benchmark that has some.

    >>> published_for("tvgbench", 800)["Qwen2.5-VL-7B"]
    (None, 20.0, None)
    >>> published_for("tvgbench", 20)
    {}
    """
    return PUBLISHED.get((dataset, lines), {})


def published_table(dataset: str, lines: int) -> str:
    """Plain text, one model a line; "" where there is nothing to say."""
    figures = published_for(dataset, lines)
    if not figures:
        return ""
    width = max(map(len, figures))
    rows = ["  ".join([name.ljust(width), *(f"{'-' if value is None else f'{value:.1f}':>7}" for value in values)])
            for name, values in figures.items()]
    head = "  ".join(["published".ljust(width), *(f"{name:>7}" for name in ("R1@0.3", "R1@0.5", "R1@0.7"))])
    return "\n".join([head, *rows, "(by others, zero-shot, not measured here and not all under this protocol)"])
