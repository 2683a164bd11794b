"""The entry point: lazy rooms, and what happens without the extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from clients.cli.extras import TRAINING

ROOT = Path(__file__).parents[3]


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_no_room_is_imported_before_its_verb():
    done = run(
        "import sys, clients.cli.tree\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch','numpy','PIL','onnxruntime','training','executor_service','router_service')])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_extra_the_remedy_is_one_line():
    done = run(
        "import sys; sys.modules['typer'] = None\nimport clients.cli.app as a\n"
        "sys.argv = ['molora']; a.main()"
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "molora: typer is not installed: pip install 'molora[cli]'"


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("PIL", "training", "data stats x.jsonl"),
        ("torch", "training", "train stage1 --features x --out y"),
        ("torch", "training", "train stage2 --model x --records y --out z"),
        ("numpy", "training", "evaluate --features x"),
        ("PIL", "training", "evaluate"),
        ("onnx", "training", "export x y --features z"),
        ("PIL", "training", "bench"),
        ("starlette", "web", "serve web"),
    ],
)
def test_without_the_extra_of_a_verb_the_remedy_is_one_line(missing, extra, arguments):
    done = run(
        f"import sys; sys.modules[{missing!r}] = None\nimport clients.cli.app as a\n"
        f"sys.argv = ['molora', *{arguments.split()}]; a.main()"
    )
    assert done.returncode == 1
    remedy = f"molora: {missing} is not installed: pip install 'molora[{extra}]'"
    assert done.stderr.strip() == remedy


def test_a_module_of_our_own_that_is_missing_is_not_disguised(molora, monkeypatch):
    monkeypatch.setitem(sys.modules, "training.data.stats", None)
    done = molora("data", "stats", "x.jsonl")
    assert isinstance(done.exception, ModuleNotFoundError)
    assert "pip install" not in done.output


def test_what_the_rooms_import_is_the_extras():
    """What else they import is the base's, the command line's or Python's."""
    rooms = ("training", "executor_service", "router_service", "service_chassis")
    found = set()
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    base = {"grpc", "google", "molora", "molora_client", "rich", "_typeshed", *rooms}
    assert found - base - sys.stdlib_module_names <= TRAINING


def test_every_verb_has_a_help_line(molora):
    for verb in ("", "serve", "experts", "data"):
        done = molora(*verb.split(), "--help")
        assert done.exit_code == 0
        assert "Commands" in done.stdout
