from collections.abc import Iterator

import pytest

from tests.support.stub_services import StubServices, running_stub


@pytest.fixture
def stub() -> Iterator[StubServices]:
    with running_stub() as services:
        yield services


@pytest.fixture
def other_stub() -> Iterator[StubServices]:
    with running_stub() as services:
        yield services
