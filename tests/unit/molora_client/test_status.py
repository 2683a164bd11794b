"""Wire status to error, against googleapis' own classes."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from molora_client import MoloraError, errors
from molora_client.status import to_molora_error
from tests.support.stub_services import Fail, rich_status


class Failed(grpc.RpcError):
    def __init__(self, code, metadata=()):
        self._code, self._metadata = code, metadata

    def code(self):
        return self._code

    def details(self):
        return "text"

    def trailing_metadata(self):
        return self._metadata


def decoded(code, blob: bytes) -> MoloraError:
    return to_molora_error(Failed(code, (("grpc-status-details-bin", blob),)), "id-1")


def test_reason_metadata_and_delay_are_read():
    failure = Fail(
        grpc.StatusCode.NOT_FOUND, "UNKNOWN_EXPERT", metadata={"expert": "x"}, retry_after_s=0.25
    )
    error = decoded(failure.code, rich_status(failure))
    assert type(error) is errors.NotFoundError
    assert (error.reason, error.metadata, error.retry_after_s) == (
        "UNKNOWN_EXPERT",
        {"expert": "x"},
        0.25,
    )
    assert error.request_id == "id-1"
    assert "experts list" in error.remedy


def test_an_expired_context_has_a_class_of_its_own():
    failure = Fail(grpc.StatusCode.NOT_FOUND, "CONTEXT_EXPIRED")
    assert type(decoded(failure.code, rich_status(failure))) is errors.ContextExpiredError


def test_another_domain_is_not_ours():
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason="CONTEXT_EXPIRED", domain="proxy.example"))
    blob = status_pb2.Status(details=[packed]).SerializeToString()
    error = decoded(grpc.StatusCode.NOT_FOUND, blob)
    assert type(error) is errors.NotFoundError
    assert error.reason == ""


@pytest.mark.parametrize("blob", [b"", b"\xff\xff\xff", b"\x1a\x05\x0a\x03abc"])
def test_damaged_details_leave_code_and_text(blob):
    error = decoded(grpc.StatusCode.INTERNAL, blob)
    assert type(error) is errors.InternalError
    assert (error.reason, error.message) == ("", "text")


def test_no_trailers_at_all():
    assert to_molora_error(Failed(grpc.StatusCode.UNAVAILABLE, None), "").code == "UNAVAILABLE"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_code_has_a_class_and_a_remedy(code):
    error = decoded(code, b"")
    assert error.code in (code.name, "UNKNOWN")
    assert error.remedy


def test_the_private_pool_stays_private():
    # googleapis registers the same names in the default pool; neither may disturb the other.
    from google.protobuf import descriptor_pool

    from molora_client.status import _STATUS

    default = descriptor_pool.Default().FindMessageTypeByName("google.rpc.Status")
    assert default is not _STATUS.DESCRIPTOR
    assert [field.number for field in default.fields] == [
        field.number for field in _STATUS.DESCRIPTOR.fields
    ]
