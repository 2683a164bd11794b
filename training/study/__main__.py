"""`python -m training.study`: measures a trained miniature, in steps that a stopped run keeps.

Knows flags, progress and where results are written; the study is a module of its own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from executor_service.errors import NotLoadable
from router_service.errors import BundleError
from service_chassis.errors import ServiceError
from training.feature_index import index_digest, read_index
from training.outputs import check_writable
from training.run_file import digest_of
from training.server_process import ServerFailed
from training.study.choices import DEFAULT_CONFIG, Spec
from training.study.kept import Kept
from training.study.report import bars_table, choices_table, markdown, picture, stages_table
from training.study.screens import Sizes
from training.study.study import PARTS, Plan, Study

console = Console(stderr=True)
_REFUSALS = (ValueError, OSError, NotLoadable, BundleError, ServiceError, ServerFailed)


def main() -> None:
    """Runs the parts that are asked for, then writes JSON, Markdown and picture."""
    arguments = _arguments()
    plan = Plan(
        model=arguments.model,
        experts=arguments.experts,
        work=arguments.work,
        seeds=tuple(arguments.seeds),
        sizes=Sizes(arguments.images, arguments.unseen, arguments.lessons, arguments.cases),
        steps=arguments.steps,
        features=arguments.features,
    )
    try:
        check_writable(arguments.json)
        found = Study(plan, Kept(plan.work / "steps", _given(plan)), _shown).run(arguments.parts)
        found["command"] = shlex.join(["python", "-m", "training.study", *sys.argv[1:]])
        _write(arguments.json, found)
    except _REFUSALS as error:
        sys.exit(f"study: {error}")
    _show(found)


def _given(plan: Plan) -> dict[str, Any]:
    """What makes two studies different ones; a path says nothing of what is there.

    The number of cases is none of it: heads do not depend on it. Of the code only its
    defaults are: after another change give another folder.

    Raises:
        ValueError: The base or the cache cannot be used.
    """
    weights = plan.model / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{plan.model} holds no {weights.name}: give the checkpoint of a base")
    if plan.features is not None:
        read_index(plan.features)
    files = sorted(plan.experts.rglob("*.safetensors"))
    learnt = {name: size for name, size in asdict(plan.sizes).items() if name != "cases"}
    return {
        "model": digest_of(weights),
        "experts": {str(path.relative_to(plan.experts)): digest_of(path) for path in files},
        "seeds": list(plan.seeds),
        "sizes": learnt,
        "steps": plan.steps,
        "features": plan.features and index_digest(plan.features),
        "default features": asdict(Spec()),
        "default head": DEFAULT_CONFIG.model_dump(),
    }


def _write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    if found["choices"]:
        path.with_suffix(".svg").write_text(picture(found["choices"]), encoding="utf-8")


def _show(found: dict[str, Any]) -> None:
    for title, table in (
        ("choices", choices_table), ("bars", bars_table), ("stages", stages_table),
    ):  # fmt: skip
        columns, rows = table(found)
        if rows:
            shown = Table(*columns, title=title, title_justify="left")
            for row in rows:
                shown.add_row(*row)
            Console().print(shown)


@contextmanager
def _shown(title: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
        # A step that says nothing of its parts is one.
        bar.update(task, completed=bar.tasks[0].total or 1, total=bar.tasks[0].total or 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.study", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of the base")
    parser.add_argument("--experts", type=Path, required=True, help="one expert per folder")
    parser.add_argument("--work", type=Path, required=True, help="goes on with what is there")
    parser.add_argument("--json", type=Path, required=True, help="with a .md and a .svg beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--features", type=Path, help="cache that heads learn from; unset: of --images drawn here"
    )
    parser.add_argument("--images", type=int, default=80, help="for stage 1, of each expert")
    parser.add_argument("--unseen", type=int, default=20, help="in unseen looks, of each expert")
    parser.add_argument("--lessons", type=int, default=40, help="for stage 2, of each expert")
    parser.add_argument("--cases", type=int, default=20, help="to answer, of each expert")
    parser.add_argument("--steps", type=int, default=80, help="of stages 2 and 3")
    return parser.parse_args()


if __name__ == "__main__":
    # Without this a SIGTERM would leave servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
