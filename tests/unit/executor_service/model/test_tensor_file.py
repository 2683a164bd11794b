"""The bytes of a file: read once and whole, and checked before anything parses them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from executor_service.model import tensor_file
from executor_service.model.tensor_file import parse_tensors, read_private
from service_chassis.errors import DataLoss, FailedPrecondition, InvalidArgument

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def container(header: object, body: bytes = b"") -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_good_file():
    found = parse_tensors(save(TENSORS, metadata={"format": "pt"}))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "data",
    [
        container(b"{"),
        container([]),
        container({"a": entry(offsets=(0, 8))}, b"12345678"),
        container({"a": entry(offsets=(4, 8))}, b"12345678"),
        container({"a": entry(), "b": entry()}, b"1234"),
        container({"a": entry(), "b": entry(offsets=(8, 12))}, b"123456789012"),
        container({"a": entry(shape=(-1,))}, b"1234"),
        container({"a": entry(shape=(True,))}, b"1234"),
        container({"a": entry(shape=(1,) * 9)}, b"1234"),
        container({"a": entry(offsets=(0,))}, b"1234"),
        container({"a": entry() | {"more": 1}}, b"1234"),
        container({"a": 1}, b"1234"),
        container({"a": entry()}, b"123"),
        container(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), b"1234"),
    ],
)
def test_a_header_that_does_not_describe_its_bytes_is_refused(data):
    with pytest.raises(DataLoss) as caught:
        parse_tensors(data)
    assert caught.value.reason == "CORRUPT_ADAPTER"


def test_a_header_is_bounded_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 16)
    with pytest.raises(InvalidArgument) as caught:
        parse_tensors(save(TENSORS))
    assert caught.value.reason == "HEADER_TOO_LARGE"


def test_the_number_of_tensors_is_bounded(monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_TENSORS", 1)
    with pytest.raises(InvalidArgument) as caught:
        parse_tensors(save(TENSORS))
    assert caught.value.reason == "TOO_MANY_TENSORS"


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InvalidArgument) as caught:
        read_private(path, 2**20)
    assert caught.value.reason == "ADAPTER_TOO_LARGE"


@pytest.mark.parametrize("written", [b"", b"shorter", b"changed!", b"longer than before"])
def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path, monkeypatch, written):
    path = tmp_path / "file"
    path.write_bytes(b"original")
    real, calls = os.fstat, []

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        before = real(descriptor)
        if len(calls) == 1:
            path.write_bytes(written)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        return before

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(DataLoss) as caught:
        read_private(path, 2**20)
    assert caught.value.reason == "ADAPTER_CHANGED"
    assert len(calls) > 1


def test_what_was_read_stays_what_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(save(TENSORS))
    found = parse_tensors(read_private(path, 2**20))
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found["a"], TENSORS["a"])


def test_a_path_below_a_file_is_missing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FailedPrecondition) as caught:
        read_private(Path(tmp_path, "file", "weights"), 1)
    assert (caught.value.reason, caught.value.metadata) == (
        "ADAPTER_FILE_MISSING",
        {"file": "weights"},
    )
