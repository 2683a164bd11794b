import json
import re
import zipfile
from collections.abc import Iterator

import pytest

from tests.support.wheels import ROOT, built_wheel


@pytest.fixture(scope="module")
def wheel() -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built_wheel()) as archive:
        yield archive


def test_wheel_holds_the_packages_under_the_names_that_are_imported(wheel):
    names = set(wheel.namelist())
    for expected in (
        "molora/v1/router_pb2_grpc.py",
        "molora/v1/router_pb2_grpc.pyi",
        "molora/v1/router.proto",
        "molora_client/__init__.py",
        # Without it a type checker of its users sees none of its types.
        "molora_client/py.typed",
        "clients/cli/app.py",
        "clients/web/app.py",
        "clients/web/static/index.html",
        "service_chassis/server.py",
        "router_service/__main__.py",
        "executor_service/__main__.py",
        "training/screens/fonts/LICENSE-DejaVu.txt",
    ):
        assert expected in names
    roots = {name.split("/")[0] for name in names}
    assert "tests" not in roots
    assert "python" not in roots


def requirements(wheel: zipfile.ZipFile, extra: str | None) -> set[str]:
    """What the wheel asks for, in all cases or with one extra."""
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    found = set()
    for line in wheel.read(metadata).decode().splitlines():
        if line.startswith("Requires-Dist: "):
            requirement, _, marker = line.removeprefix("Requires-Dist: ").partition("; ")
            if marker == (f"extra == '{extra}'" if extra else ""):
                found.add(requirement)
    return found


def test_base_install_is_grpcio_and_protobuf_only(wheel):
    names = {re.split(r"[<>=]", requirement)[0] for requirement in requirements(wheel, None)}
    assert names == {"grpcio", "protobuf"}


def test_stubs_are_generated_by_the_same_versions_in_build_and_development(wheel):
    (line,) = re.findall(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)
    # The wheel lists the parts of a version in another order.
    build = {tuple(sorted(re.split(r"(?=[<>=])|,", text))) for text in json.loads(line)}
    development = requirements(wheel, "dev")
    assert build <= {tuple(sorted(re.split(r"(?=[<>=])|,", text))) for text in development}
