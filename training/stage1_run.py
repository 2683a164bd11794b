"""A run of stage 1, from its configuration to the bundle that a router serves.

Knows what is kept of a run; `stage1.py` trains the head and `export.py` writes it.
"""

from __future__ import annotations

from pathlib import Path

from training.export import export_bundle
from training.feature_index import index_digest, read_index
from training.stage1 import Stage1Result, train_stage1
from training.stage1_config import Stage1Run


def run_stage1(run: Stage1Run, *, progress: bool = True) -> tuple[Stage1Result, Path]:
    """Trains a head and writes its bundle, with what the run can be repeated from.

    Args:
        run: Where from, where to, and how.
        progress: Show a progress bar.

    Returns:
        The head with what was measured of it, and the bundle's directory.

    Raises:
        ArithmeticError: No validation loss is a number.
        RuntimeError: The exported head does not say what the trained one does.
        ValueError: A cache cannot be used, or the folder holds another run.
    """
    read_index(run.features)
    run.save()
    run.pin({"features": index_digest(run.features), "known": index_digest(run.known)})
    result = train_stage1(
        run.features, config=run.config, known=run.known, progress=progress, events=run.out
    )
    return result, export_bundle(result, run.out)
