"""Seconds of a step add up, whoever worked on it and however it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.miniature import clock as clock_module
from training.miniature.clock import Clock


def test_seconds_add_up_over_processes_that_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0.0, 10.0, 100.0, 105.0, 200.0, 201.5])
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: next(ticks))
    path = tmp_path / "run" / "seconds.json"
    assert Clock(path).seconds() == {}
    with pytest.raises(KeyboardInterrupt), Clock(path).step("tower"):
        raise KeyboardInterrupt
    with Clock(path).step("router"):
        pass
    with Clock(path).step("tower"):
        pass
    assert list(Clock(path).seconds().items()) == [("tower", 11.5), ("router", 5.0)]
