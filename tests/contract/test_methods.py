import inspect

import pytest
from google.protobuf import descriptor_pool

from executor_service.servicer import AUTH_TABLE as EXECUTOR_AUTH
from executor_service.servicer import ExecutorServicer, ExpertAdminServicer
from router_service.server import AUTH_TABLE as ROUTER_AUTH
from router_service.servicer import RouterServicer
from service_chassis.auth import CHASSIS_AUTH, Role, check_auth_table

SERVICERS = {
    "molora.v1.RouterService": RouterServicer,
    "molora.v1.ExecutorService": ExecutorServicer,
    "molora.v1.ExpertAdminService": ExpertAdminServicer,
}
METHODS = [
    pytest.param(servicer, method, id=method.full_name)
    for name, servicer in SERVICERS.items()
    for method in descriptor_pool.Default().FindServiceByName(name).methods
]


@pytest.mark.parametrize(("servicer", "method"), METHODS)
def test_every_method_is_implemented_in_the_form_that_the_interceptor_calls(servicer, method):
    implementation = vars(servicer)[method.name]
    if method.server_streaming:
        assert inspect.isasyncgenfunction(implementation)
    else:
        assert inspect.iscoroutinefunction(implementation)


def test_auth_tables_name_every_method():
    check_auth_table(["molora.v1.RouterService"], ROUTER_AUTH)
    check_auth_table(["molora.v1.ExecutorService", "molora.v1.ExpertAdminService"], EXECUTOR_AUTH)


def test_only_admins_change_experts_and_only_health_is_public():
    tables = {**ROUTER_AUTH, **EXECUTOR_AUTH, **CHASSIS_AUTH}
    public = {method for method, role in tables.items() if role is Role.PUBLIC}
    admin = {method for method, role in tables.items() if role is Role.ADMIN}
    assert public == {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    assert admin == {
        f"/molora.v1.ExpertAdminService/{name}"
        for name in ("LoadExpert", "UnloadExpert", "ReloadExpert")
    }


def test_chassis_table_names_every_method_of_its_services():
    # Importing the servers has registered both descriptors.
    check_auth_table(
        ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"], CHASSIS_AUTH
    )
