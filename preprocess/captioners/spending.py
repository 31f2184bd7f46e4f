"""What captions from an endpoint cost, counted as it is spent, and the budget that ends a run.

A request is counted when it is sent, its tokens when its answer tells them. A request that is under way is counted as
the largest one so far, so a budget is passed only by what a request takes more than any before it. Left out: what an
endpoint charges for requests that it did not answer."""

from __future__ import annotations

import threading
import time

from taro.core.errors import TaroError
from taro.preprocess.config import BudgetConfig

__all__ = ["Spending", "Tokens"]

Tokens = tuple[int, int]
"""sent, answered"""


class Spending:
    """Shared by the threads of one captioner."""

    def __init__(self, budget: BudgetConfig) -> None:
        self._budget, self._changed, self._began_s = budget, threading.Condition(), time.monotonic()
        self.requests, self.answers = 0, 0
        self.tokens: Tokens = (0, 0)
        self._largest: Tokens = (0, 0)
        self._under_way, self._untold = 0, False

    def begin(self) -> None:
        """To be called before a request is sent: counts it, where the budget has room for it beside those under way;
        waits for these where that decides. Raises TaroError where it has none."""
        with self._changed:
            while (full := self._full(self._under_way + 1)) is not None:
                if not self._under_way or self._full(0) is not None:
                    raise TaroError(f"{full}; this run sent {self.requests:,} requests, for {self._spent}. Every "
                                    "answer is kept: raise caption.budget, or run the same command again to go on with "
                                    "as much once more")
                self._changed.wait()
            self.requests += 1
            self._under_way += 1

    def end(self, tokens: Tokens | None, *, answered: bool) -> None:
        """To be called when a request has ended. `tokens`: None where the endpoint did not tell; `answered`: it brought
        an answer, good or not."""
        with self._changed:
            self._under_way -= 1
            self.answers += answered
            self._untold |= answered and tokens is None
            sent, said = tokens or (0, 0)
            self.tokens = self.tokens[0] + sent, self.tokens[1] + said
            self._largest = max(self._largest[0], sent), max(self._largest[1], said)
            self._changed.notify_all()

    def _full(self, more: int) -> str | None:
        """Why there is no room for `more` requests; None where there is."""
        budget, (sent, said) = self._budget, self.tokens
        if budget.max_requests is not None and self.requests + (more > 0) > budget.max_requests:
            return f"caption.budget.max_requests={budget.max_requests} is reached"
        if self._untold and (budget.max_tokens is not None or budget.max_cost is not None):
            return ("the endpoint does not tell tokens (usage in its answers), which caption.budget.max_tokens and "
                    "max_cost need; use max_requests")
        sent, said = sent + more * self._largest[0], said + more * self._largest[1]
        if budget.max_tokens is not None and sent + said > budget.max_tokens:
            return f"caption.budget.max_tokens={budget.max_tokens} is reached"
        if budget.max_cost is not None and (self._cost(sent, said) or 0.0) > budget.max_cost:
            return f"caption.budget.max_cost={budget.max_cost:g} is reached"
        return None

    def _cost(self, sent: int, said: int) -> float | None:
        prices = self._budget.prices
        return None if prices is None else (sent * prices[0] + said * prices[1]) / 1e6

    @property
    def _spent(self) -> str:
        cost = self._cost(*self.tokens)
        return f"{sum(self.tokens):,} tokens" + ("" if cost is None else f" that cost {cost:.4g}")

    @property
    def status(self) -> str:
        """For people: answers a minute, and what was spent.

        >>> spending = Spending(BudgetConfig(price_in=1.0, price_out=2.0))
        >>> spending.begin(); spending.end((1000, 500), answered=True)
        >>> spending.status.partition("/min, ")[2]
        'cost 0.002'
        """
        with self._changed:
            minutes, cost = (time.monotonic() - self._began_s) / 60, self._cost(*self.tokens)
            rate = self.answers / max(minutes, 1 / 60)
            return f"{rate:,.0f} captions/min, " + (f"{sum(self.tokens):,} tokens" if cost is None
                                                    else f"cost {cost:.4g}")
