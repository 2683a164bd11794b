"""One tiny run's parts for all tests here; accelerate's state is one for the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.support.tiny_run import TinyRun, write_tiny_run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return write_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These matrices are too small to be shared out between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """The next test may ask for another precision."""
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"
