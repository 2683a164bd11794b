"""The entry point of `molora`, also where the extra `[cli]` is not installed.

Knows no verb: those are in `tree.py`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; never returns."""
    try:
        from clients.cli.tree import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"molora: {error.name} is not installed: pip install 'molora[cli]'")
    app(prog_name="molora")


if __name__ == "__main__":
    main()
