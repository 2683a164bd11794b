from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.support.bridge import Log, RunningBridge, running_bridge
from tests.support.stub_services import SCREEN, StubServices, running_stub


@pytest.fixture(scope="module")
def services() -> Iterator[StubServices]:
    with running_stub() as services:
        yield services


@pytest.fixture
def stub(services: StubServices) -> StubServices:
    """Healthy services that were not asked anything yet."""
    services.script.clear()
    services.calls.clear()
    return services


@pytest.fixture(scope="module")
def bridge(services: StubServices) -> Iterator[RunningBridge]:
    """One bridge for all tests of a module; its journal grows."""
    with running_bridge(services.address, services.address) as running:
        yield running


@pytest.fixture
def log(bridge: RunningBridge, capsys: pytest.CaptureFixture[str]) -> Log:
    """What the bridge logs from here on."""
    return Log(bridge, capsys)


@pytest.fixture
def ask(stub: StubServices) -> dict[str, object]:
    """A question that is answered."""
    return {"image_b64": base64.b64encode(SCREEN).decode(), "prompt": "Click December 3"}
