"""The entry point: lazy rooms, and what happens without the extra."""

import subprocess
import sys


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


def test_every_verb_has_a_help_line(molora):
    for verb in ("", "serve", "experts", "data"):
        done = molora(*verb.split(), "--help")
        assert done.exit_code == 0
        assert "Commands" in done.stdout
