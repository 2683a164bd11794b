from pathlib import Path

import pytest

import hatch_build

STUBS = Path(hatch_build.__file__).parent / "protos" / "molora" / "v1"


def test_generated_stubs_match_the_protos(tmp_path):
    hatch_build.generate_stubs(tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "molora" / "v1").iterdir()}
    ours = {path.name: path.read_text() for path in STUBS.glob("*_pb2*")}
    assert ours.keys() == fresh.keys()
    stale = sorted(name for name in fresh if fresh[name] != ours[name])
    if stale:
        pytest.fail(f"run `.venv/bin/python hatch_build.py`: {', '.join(stale)} are out of date")
