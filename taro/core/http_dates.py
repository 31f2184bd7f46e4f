"""Dates as HTTP writes them, from servers that are not trusted."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

__all__ = ["seconds_until"]


def seconds_until(date: str, now_s: float) -> float | None:
    """Seconds from `now_s` (since 1970) to a date, 0 where it is past; None where it is no date.

    >>> seconds_until("Thu, 01 Jan 1970 00:01:00 GMT", 50.0), seconds_until("soon", 0.0)
    (10.0, None)
    """
    try:
        return max(parsedate_to_datetime(date).timestamp() - now_s, 0.0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
