from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clients.cli.tree import app
from tests.support.stub_services import SCREEN, StubServices, running_stub


@pytest.fixture
def stub() -> Iterator[StubServices]:
    with running_stub() as services:
        yield services


@pytest.fixture
def screen(tmp_path: Path) -> Path:
    path = tmp_path / "screen.png"
    path.write_bytes(SCREEN)
    return path


@pytest.fixture
def molora() -> Callable[..., Result]:
    """Runs `molora` with these arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments])
