"""Dockerfile, compose and Kubernetes, as far as they can be held to the code without Docker."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from typer.main import get_command

from clients.cli.tree import app
from executor_service.settings import ExecutorSettings
from router_service.settings import RouterSettings
from service_chassis.settings import ServerSettings, parse_settings
from tests.support.certificates import Authority, write_server
from tests.support.dockerfile import last
from tests.support.wheels import ROOT, built_wheel

TARGETS = {"router": "50051", "executor": "50052", "all": "50051"}
SETTINGS: dict[str, type[ServerSettings]] = {
    "executor": ExecutorSettings,
    "router": RouterSettings,
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_checked_and_no_root(target: str) -> None:
    assert last(target, "USER") == "10001"
    command = json.loads(last(target, "HEALTHCHECK").partition("CMD ")[2])
    assert command == ["python3", "-m", "service_chassis.probe", f"127.0.0.1:{TARGETS[target]}"]
    *python, verb, service = json.loads(last(target, "ENTRYPOINT"))
    assert python == ["python3", "-m", "clients.cli.app"]
    assert service == target
    commands: Any = get_command(app)
    assert service in commands.commands[verb].commands
    exposed = last(target, "EXPOSE").split()
    for name, settings in SETTINGS.items():
        for field in ("port", "metrics_port"):
            default = str(settings.model_fields[field].default)
            assert (default in exposed) == (target in (name, "all"))


def test_what_the_build_copies_is_what_the_wheel_holds() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    taken = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert all((ROOT / name).exists() for name in taken)
    listed = re.search(r"only-include = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)
    assert listed
    packages = {name.split("/")[0] for name in re.findall(r'"(.*?)"', listed[1])}
    assert packages <= taken


def installed(*extras: str) -> dict[str, metadata.Distribution]:
    """What these extras of ours bring, and what that brings, as it is installed here."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [Requirement(f"molora[{','.join(extras)}]")]
    while wanted:
        requirement = wanted.pop()
        distribution = metadata.distribution(requirement.name)
        found[requirement.name] = distribution
        for text in distribution.requires or ():
            needed = Requirement(text)
            needs = [{"extra": extra} for extra in ("", *requirement.extras)]
            applies = needed.marker is None or any(map(needed.marker.evaluate, needs))
            # Our own extras name each other, and none of them names itself.
            if applies and (needed.name not in found or needed.name == "molora"):
                wanted.append(needed)
    return found


def test_the_router_s_packages_leave_room_below_300_mb() -> None:
    """The image is these packages on a distroless Python, which has about 50 MB."""
    brought = installed("router")
    del brought["molora"]
    assert {"onnxruntime", "numpy", "grpcio", "typer"} <= brought.keys()
    assert "torch" not in brought
    paths = {
        Path(str(file.locate()))
        for distribution in brought.values()
        for file in distribution.files or ()
    }
    total_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    with zipfile.ZipFile(built_wheel()) as wheel:
        total_bytes += sum(entry.file_size for entry in wheel.infolist())
    assert 150e6 < total_bytes < 250e6


def parsed(service: str, environ: dict[str, str], monkeypatch: Any, folder: Path) -> ServerSettings:
    """The settings that a container has, with files of this machine in the place of its own."""
    authority = Authority()
    files = write_server(folder, authority.issue(), authority.pem)
    (folder / "tokens").write_text("infer token\n")
    (folder / "token").write_text("token\n")
    own = {
        "TLS_CERT": files.certificate,
        "TLS_KEY": files.key,
        "TLS_CLIENT_CA": files.client_ca,
        "TOKENS_FILE": folder / "tokens",
        "EXECUTOR_TLS_CA": files.client_ca,
        "EXECUTOR_TLS_CERT": files.certificate,
        "EXECUTOR_TLS_KEY": files.key,
        "EXECUTOR_TOKEN_FILE": folder / "token",
    }
    for name, value in environ.items():
        field = name.removeprefix(f"MOLORA_{service.upper()}_")
        assert field.lower() in SETTINGS[service].model_fields
        monkeypatch.setenv(name, str(own.get(field, value)))
    return parse_settings(SETTINGS[service], [], service)


def check_apart(executor: ServerSettings, router: ServerSettings, host: str) -> None:
    """Each on a machine of its own: mutual TLS and a token between them."""
    assert isinstance(router, RouterSettings)
    assert executor.host == router.host == "0.0.0.0"
    assert executor.tls_files is not None
    assert executor.tls_files.client_ca is not None
    assert executor.tokens_file is not None
    assert router.tls_files is not None
    assert router.tokens_file is not None
    assert None not in dataclasses.astuple(router.executor_files)
    assert router.executor == f"{host}:{executor.port}"


def check_pair(executor: ServerSettings, router: ServerSettings) -> None:
    """The executor is for its neighbour alone; the router is reached with TLS and a token."""
    assert isinstance(router, RouterSettings)
    assert (executor.host, router.host) == ("127.0.0.1", "0.0.0.0")
    assert router.executor == f"{executor.host}:{executor.port}"
    assert router.tls_files is not None
    assert router.tokens_file is not None


def test_compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    services = compose["services"]
    network = services.pop("network")
    assert network["entrypoint"][-1] == "import signal; signal.pause()"
    found = {}
    for name, service in services.items():
        assert service["build"]["target"] == name
        # Not one another's, which would be gone when that one is restarted.
        assert service["network_mode"] == "service:network"
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        found[name] = parsed(name, service["environment"], monkeypatch, tmp_path)
        assert int(service["stop_grace_period"].rstrip("s")) > found[name].drain_grace_s
    check_pair(found["executor"], found["router"])
    ports = {port.split(":")[1] for port in network["ports"]}
    assert ports == {str(found["router"].port), str(found["router"].metrics_port)}


def test_compose_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "deploy/compose.apart.yaml").read_text()
    services = yaml.safe_load(text.replace("${EXECUTOR:-executor:50052}", "executor:50052"))[
        "services"
    ]
    found = {}
    for name, service in services.items():
        assert service["build"]["target"] == name
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        found[name] = parsed(name, service["environment"], monkeypatch, tmp_path)
        assert int(service["stop_grace_period"].rstrip("s")) > found[name].drain_grace_s
        ports = {port.split(":")[1] for port in service["ports"]}
        assert ports == {str(found[name].port), str(found[name].metrics_port)}
    check_apart(found["executor"], found["router"], "executor")
    environ = services["executor"]["environment"]
    pair = [environ[f"MOLORA_EXECUTOR_TLS_{part}"] for part in ("CERT", "KEY")]
    probe = ["service_chassis.probe", f"127.0.0.1:{found['executor'].port}", *pair]
    assert services["executor"]["healthcheck"]["test"][-4:] == probe


def test_kubernetes_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/apart.yaml").read_text()))
    pairs = list(zip(documents[::2], documents[1::2], strict=True))
    found = {}
    for deployment, service in pairs:
        pod = deployment["spec"]["template"]["spec"]
        # A Service named molora-router would set MOLORA_ROUTER_PORT.
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        [container] = pod["containers"]
        name = container["name"]
        environ = {one["name"]: one["value"] for one in container["env"]}
        settings = found[name] = parsed(name, environ, monkeypatch, tmp_path)
        assert container["securityContext"]["readOnlyRootFilesystem"]
        probe = container["readinessProbe"]["exec"]["command"]
        own = [f"127.0.0.1:{settings.port}", environ[f"MOLORA_{name.upper()}_TLS_CERT"]]
        shown = 3 if name == "executor" else 1
        assert probe[3:] == [*own, environ[f"MOLORA_{name.upper()}_TLS_KEY"]][:shown]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
        assert pod["terminationGracePeriodSeconds"] > settings.drain_grace_s
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
        assert service["spec"]["ports"][0]["port"] == settings.port
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == labels
    check_apart(found["executor"], found["router"], pairs[0][1]["metadata"]["name"])


def test_kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes/molora.yaml").read_text())
    deployment, service = documents
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    found = {}
    for container in pod["containers"]:
        name = container["name"]
        environ = {one["name"]: one["value"] for one in container["env"]}
        found[name] = parsed(name, environ, monkeypatch, tmp_path)
        probe = container["readinessProbe"]["exec"]["command"]
        assert probe[-1] == f"127.0.0.1:{found[name].port}"
        assert container["securityContext"]["readOnlyRootFilesystem"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
    check_pair(found["executor"], found["router"])
    assert pod["terminationGracePeriodSeconds"] > found["router"].drain_grace_s
    [router] = [one for one in pod["containers"] if one["name"] == "router"]
    ports = {port["name"]: port["containerPort"] for port in router["ports"]}
    assert ports == {"grpc": found["router"].port, "metrics": found["router"].metrics_port}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
