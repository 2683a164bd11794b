"""`python -m executor_service`: settings, then the server. Knows no rule of either."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from executor_service.settings import ExecutorSettings
from service_chassis.settings import parse_settings


def main(argv: Sequence[str] | None = None, prog: str = "python -m executor_service") -> int:
    """Run the executor until it is told to stop.

    Args:
        argv: Arguments; those of the process if None.
        prog: The command as its user typed it.

    Returns:
        0 after a drain, 1 after a crash, 3 where the model or an expert cannot be loaded. A wrong
        setting exits with 2.
    """
    settings = parse_settings(ExecutorSettings, sys.argv[1:] if argv is None else argv, prog)
    # Torch takes seconds to import, and a wrong flag should not have to wait for it.
    from executor_service.server import run

    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
