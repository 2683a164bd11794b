import re

import pytest
from google.protobuf.descriptor import FileDescriptor

from molora.v1 import admin_pb2, executor_pb2, router_pb2, types_pb2

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (types_pb2, executor_pb2, router_pb2, admin_pb2)
]
ENUMS = [enum for file in FILES for enum in file.enum_types_by_name.values()]
METHODS = [
    method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
]

# Removing one of these breaks every client; buf checks the fields, this list the surface.
SURFACE = {
    "molora.v1.RouterService": {"Route", "Predict", "GetRouterInfo"},
    "molora.v1.ExecutorService": {
        *("ExtractFeatures", "Generate", "Score", "ListExperts", "GetServerInfo")
    },
    "molora.v1.ExpertAdminService": {"LoadExpert", "UnloadExpert", "ReloadExpert"},
}


def test_services_and_methods_are_the_promised_ones():
    found: dict[str, set[str]] = {}
    for method in METHODS:
        found.setdefault(method.containing_service.full_name, set()).add(method.name)
    assert found == SURFACE


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_enum_values_are_prefixed_and_zero_is_unspecified(enum):
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
    assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
    assert all(name.startswith(f"{prefix}_") for name in enum.values_by_name)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_method_has_messages_of_its_own(method):
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"
