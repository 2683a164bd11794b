"""An untrained miniature, shared by the tests of its training."""

import pytest

from executor_service.model.screen import ScreenReader
from tests.support.checkpoints import untrained_checkpoint


@pytest.fixture
def reader():
    """Preprocessing of the miniature."""
    return ScreenReader(untrained_checkpoint())
