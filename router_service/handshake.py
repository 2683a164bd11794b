"""Whether the executor still is the one that the bundle was made for.

Knows digests and order; knows neither gRPC nor what a feature means. The router answers no data
call while the two do not match: a head that speaks of other experts gives valid, wrong answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from router_service.core import ExecutorInfo, Features
from router_service.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    ServiceError,
    Unavailable,
)
from router_service.manifest import Manifest

_log = structlog.get_logger()
_FIRST_RETRY_S = 0.1


@dataclass(frozen=True)
class Problem:
    """Why the router is not serving; raised to callers as `kind`."""

    kind: type[ServiceError]
    reason: str
    message: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def error(self) -> ServiceError:
        """A fresh error: one that is raised twice would collect tracebacks."""
        return self.kind(self.reason, self.message, **self.metadata)


NOT_CONTACTED = Problem(
    Unavailable, "EXECUTOR_UNREACHABLE", "The executor has not answered yet; retry later."
)
UNREACHABLE = Problem(
    Unavailable,
    "EXECUTOR_UNREACHABLE",
    "The executor does not answer; retry once it is back. If it runs, correct --executor, or give "
    "the router what its TLS asks for by --executor-tls-ca, --executor-tls-cert and "
    "--executor-tls-key.",
)


def compare(manifest: Manifest, info: ExecutorInfo) -> Problem | None:
    """Compare a bundle with what an executor runs.

    More loaded experts than the bundle names are allowed; they are not routable.

    Args:
        manifest: The bundle's.
        info: The executor's.

    Returns:
        None if they match, else the first difference: MODEL_MISMATCH, FEATURE_SPEC_MISMATCH,
        EXPERT_MISSING, EXPERT_CHANGED or EXPERT_ORDER.
    """
    if info.model != manifest.feature_spec.base_digest:
        return _mismatch(
            "MODEL_MISMATCH",
            "The executor runs another base model than the router was trained on; "
            "start it with that model, or train and export a router for this one.",
            {"expected": manifest.feature_spec.base_digest, "found": info.model},
        )
    if info.feature_spec != manifest.feature_spec_digest:
        return _mismatch(
            "FEATURE_SPEC_MISMATCH",
            "The executor extracts other features than the router was trained on; "
            "start it with that feature spec, or train and export a router for this one.",
            {"expected": manifest.feature_spec_digest, "found": info.feature_spec},
        )
    return _compare_experts(manifest, info)


def _compare_experts(manifest: Manifest, info: ExecutorInfo) -> Problem | None:
    loaded = {expert.name: expert.digest for expert in info.experts}
    for expert in manifest.experts:
        if expert.name not in loaded:
            return _mismatch(
                "EXPERT_MISSING",
                "An expert that the router knows is not loaded; load it.",
                {"expert": expert.name, "expected": expert.digest},
            )
        if loaded[expert.name] != expert.digest:
            return _mismatch(
                "EXPERT_CHANGED",
                "An expert has other content than the one the router was trained on; "
                "load that one, or train and export a router for this one.",
                {"expert": expert.name, "expected": expert.digest, "found": loaded[expert.name]},
            )
    known = [expert.name for expert in manifest.experts]
    if [expert.name for expert in info.experts if expert.name in set(known)] != known:
        return _mismatch(
            "EXPERT_ORDER",
            "The executor has the router's experts in another order; export the router again.",
            {},
        )
    return None


def _mismatch(reason: str, message: str, metadata: dict[str, str]) -> Problem:
    return Problem(FailedPrecondition, reason, message, metadata)


class Handshake:
    """Watches one executor, and says whether data calls may be answered.

    Args:
        manifest: What the bundle states.
        ask: Gets the executor's info; raises a ServiceError where it cannot.
        interval_s: Time between two looks at an executor that answers, and the longest between
            two at one that does not.
    """

    def __init__(
        self, manifest: Manifest, ask: Callable[[], Awaitable[ExecutorInfo]], interval_s: float
    ) -> None:
        self._manifest = manifest
        self._ask = ask
        self._interval_s = interval_s
        self._on_change: Callable[[bool], None] = lambda serving: None
        self._info: ExecutorInfo | None = None
        self._problem: Problem | None = NOT_CONTACTED
        self._looking = asyncio.Lock()
        self._look_now = asyncio.Event()

    @property
    def problem(self) -> Problem | None:
        """Why data calls are refused; None while the executor matches."""
        return self._problem

    def require(self) -> ExecutorInfo:
        """The executor that matched at the last look.

        Raises:
            Unavailable: It does not answer.
            FailedPrecondition: It is not the one that the bundle was made for.
        """
        if self._problem is not None or self._info is None:
            raise (self._problem or NOT_CONTACTED).error()
        return self._info

    async def run(self, on_change: Callable[[bool], None]) -> None:
        """Look at the executor again and again, until cancelled.

        Args:
            on_change: Told True when the executor begins to match, False when it ceases to.
        """
        self._on_change = on_change
        retry_s = _FIRST_RETRY_S
        while True:
            self._look_now.clear()
            async with self._looking:
                await self._look()
            answered = self._problem is None or self._problem.kind is not Unavailable
            delay_s = self._interval_s if answered else min(retry_s, self._interval_s)
            retry_s = _FIRST_RETRY_S if answered else retry_s * 2
            # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
            timer = asyncio.get_running_loop().call_later(delay_s, self._look_now.set)
            try:
                await self._look_now.wait()
            finally:
                timer.cancel()

    async def confirm(self, features: Features) -> None:
        """Check that features come from the executor that matched; look again if they do not.

        Raises:
            Unavailable: The executor went away.
            FailedPrecondition: It does not match any more.
            Aborted: It matches, but changed between the features and the look.
        """
        async with self._looking:
            if self._is_from(features):
                return
            await self._look()
        self.require()
        if not self._is_from(features):
            raise Aborted("EXECUTOR_CHANGED", "The executor changed while routing; route again.")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around a call to the executor: look again soon where it went away or changed."""
        try:
            yield
        except (Aborted, FailedPrecondition, Unavailable):
            self._look_now.set()
            raise

    def _is_from(self, features: Features) -> bool:
        info = self._info
        return (
            self._problem is None
            and info is not None
            and (
                (features.model, features.feature_spec, features.expert_set)
                == (info.model, info.feature_spec, info.expert_set)
            )
        )

    async def _look(self) -> None:
        """One exchange. The caller holds the lock."""
        before = self._problem
        try:
            self._info = await self._ask()
            self._problem = compare(self._manifest, self._info)
        except (Unavailable, DeadlineExceeded):
            self._problem = UNREACHABLE
        except FailedPrecondition as error:
            # Of what the executor states, only this has a name that the log line does not use.
            told = {key: value for key, value in error.metadata.items() if key == "code"}
            self._problem = _mismatch(error.reason, error.message, told)
        except ServiceError as error:
            self._problem = _mismatch(
                "EXECUTOR_FAILED",
                "The executor fails to say what it runs; its log has the reason.",
                {"code": error.code, "cause": error.reason},
            )
        if self._problem != before:
            self._tell()

    def _tell(self) -> None:
        if self._problem is None:
            _log.info("executor matches the bundle")
        else:
            problem = self._problem
            _log.warning(
                "not serving", reason=problem.reason, remedy=problem.message, **problem.metadata
            )
        self._on_change(self._problem is None)
