"""`python -m router_service`: the router as a process. Knows flags and the exit code."""

from __future__ import annotations

import asyncio
import sys

from router_service.server import run
from router_service.settings import RouterSettings
from service_chassis.settings import parse_settings


def main(argv: list[str] | None = None) -> int:
    """Run the router.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        The exit code.
    """
    flags = sys.argv[1:] if argv is None else argv
    return asyncio.run(run(parse_settings(RouterSettings, flags, "molora serve router")))


if __name__ == "__main__":
    sys.exit(main())
