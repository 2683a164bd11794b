"""What one call may try again: the retry rule, without any I/O.

Only UNAVAILABLE (the same call), ABORTED (where the call routes again by itself) and an expired
context (once, with the screen's bytes); before the first token, within the deadline and the budget.
Knows no channel and no method.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from molora_client.errors import (
    AbortedError,
    ContextExpiredError,
    MoloraError,
    UnavailableError,
)

MAX_ATTEMPTS = 4
FIRST_DELAY_S = 0.1
LARGEST_DELAY_S = 2.0


class RetryBudget:
    """Caps the retries of one client at a share of its calls, so that a failing server is spared.

    Args:
        share: Retries earned by each call.
        reserve: Retries available from the start, and the most that can be saved up.
    """

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._balance = reserve
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Counts one call."""
        with self._lock:
            self._balance = min(self._reserve, self._balance + self._share)

    def withdraw(self) -> bool:
        """Takes one retry; False, and nothing taken, if none is left."""
        with self._lock:
            if self._balance < 1.0:
                return False
            self._balance -= 1.0
            return True


class Attempts:
    """The attempts of one call; counts itself against the budget when made.

    Args:
        budget: Shared by all calls of a client.
        timeout_s: The whole call's time, retries and waits included.
        repeatable: False for calls that must not be sent twice (admin).
        routes: True if sending the call again routes again (Predict), so ABORTED may be retried.
        screen_bytes: What to send in place of an expired context; None if not kept.
    """

    def __init__(
        self,
        budget: RetryBudget,
        timeout_s: float,
        *,
        repeatable: bool = True,
        routes: bool = False,
        screen_bytes: bytes | None = None,
    ) -> None:
        self._budget = budget
        self._end = time.monotonic() + timeout_s
        self._repeatable = repeatable
        self._routes = routes
        self._screen_bytes = screen_bytes
        self._made = 1
        self.address = ""
        """Where the last attempt went."""
        budget.deposit()

    @property
    def remaining_s(self) -> float:
        """Seconds until the call's deadline, never negative."""
        return max(0.0, self._end - time.monotonic())

    def wait_before_next(self, failure: MoloraError, request: Any) -> float:
        """Decides whether to send the request again.

        Args:
            failure: How the last attempt ended, before its first token.
            request: The request message; its `screen` is replaced if its context has expired.

        Returns:
            Seconds to wait before the next attempt.

        Raises:
            MoloraError: `failure`, if it is final.
        """
        wait_s = self._wait_s(failure, request)
        if self._made >= MAX_ATTEMPTS or wait_s >= self.remaining_s or not self._budget.withdraw():
            raise failure
        self._made += 1
        return wait_s

    def _wait_s(self, failure: MoloraError, request: Any) -> float:
        if isinstance(failure, ContextExpiredError) and self._screen_bytes is not None:
            request.screen.data = self._screen_bytes
            self._screen_bytes = None
            return 0.0
        retryable = self._repeatable and (
            isinstance(failure, UnavailableError)
            or (self._routes and isinstance(failure, AbortedError))
        )
        if not retryable:
            raise failure
        backoff_s: float = min(LARGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self._made - 1))
        # Jitter keeps clients that failed together from coming back together; it needs no secrecy.
        jittered_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311
        return max(jittered_s, failure.retry_after_s or 0.0)
