"""What TensorBoard is told comes back from the file; a run that goes on takes back its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.events import read_events, read_scalars
from training.events import EVENTS_FOLDER, Events


def test_numbers_come_back_by_name_and_step(tmp_path: Path) -> None:
    with Events(tmp_path) as events:
        for step in (1, 2):
            events.add(step, {"loss/answer": 2.0 / step, "marginal/claim-window": 0.25})
    assert read_scalars(tmp_path / EVENTS_FOLDER) == {
        "loss/answer": {1: 2.0, 2: 1.0},
        "marginal/claim-window": {1: 0.25, 2: 0.25},
    }
    assert all(
        value.WhichOneof("value") == "simple_value"
        for event in read_events(tmp_path / EVENTS_FOLDER)
        for value in event.summary.value
    ), "numbers alone: no text, no picture"


def test_steps_that_are_done_again_replace_the_earlier_ones(tmp_path: Path) -> None:
    with Events(tmp_path) as events:
        for step in (1, 2, 3):
            events.add(step, {"loss": float(step)})
    with Events(tmp_path, step=1) as events:
        events.add(2, {"loss": 20.0})
    assert read_scalars(tmp_path / EVENTS_FOLDER) == {"loss": {1: 1.0, 2: 20.0}}


def test_what_failed_is_told_to_its_end(tmp_path: Path) -> None:
    def fail() -> None:
        with Events(tmp_path) as events:
            events.add(1, {"loss": 1.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read_scalars(tmp_path / EVENTS_FOLDER) == {"loss": {1: 1.0}}


def test_another_process_writes_nothing(tmp_path: Path) -> None:
    with Events(None) as events:
        events.add(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
