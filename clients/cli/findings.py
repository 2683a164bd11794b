"""What a check of the installation has found, and how the whole of it ends.

Knows states and exit codes; knows no check.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

CRASHED = 1
BAD_SETTINGS = 2
NOT_LOADABLE = 3


class State(str, enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: What was looked at.
        state: How it ended.
        found: What is there.
        remedy: What to do, unless all is well.
        exit_code: Of the whole, if this is the first check that failed; codes are those of the
            servers, and 64 + the gRPC code where a call failed.
    """

    check: str
    state: State
    found: str
    remedy: str = ""
    exit_code: int = CRASHED


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, State.OK, found)


def skipped(check: str, found: str) -> Finding:
    """It could not, or need not, be looked at."""
    return Finding(check, State.SKIPPED, found)


def exit_code(findings: Sequence[Finding]) -> int:
    """0, or that of the first check that failed."""
    failed = [finding for finding in findings if finding.state is State.FAILED]
    return failed[0].exit_code if failed else 0
