"""How the router is told to reach its executor, and what it refuses at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_service.settings import RouterSettings
from service_chassis.settings import parse_settings
from service_chassis.upstream import UpstreamFiles
from tests.support.certificates import Authority

TOKEN = "s3cret-of-the-router"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    authority = Authority()
    pair = authority.issue("router")
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "cert.pem").write_bytes(pair.certificate)
    (folder / "key.pem").write_bytes(pair.key)
    (folder / "other.pem").write_bytes(authority.issue("other").key)
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "tokens").write_text(f"infer {TOKEN}\n")
    return folder


def parse(*argv: str) -> RouterSettings:
    return parse_settings(RouterSettings, argv, "molora serve router")


def test_by_flag_and_by_variable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse().executor_files == UpstreamFiles()
    monkeypatch.setenv("MOLORA_ROUTER_EXECUTOR_TLS_CA", str(place / "ca.pem"))
    monkeypatch.setenv("MOLORA_ROUTER_EXECUTOR_TOKEN_FILE", str(place / "token"))
    pair = (f"--executor-tls-cert={place}/cert.pem", f"--executor-tls-key={place}/key.pem")
    found = parse("--executor", "gpu.example:50052", *pair).executor_files
    assert found == UpstreamFiles(
        place / "ca.pem", place / "cert.pem", place / "key.pem", place / "token"
    )


def test_what_is_printed_holds_no_secret(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--executor-token-file", str(place / "token"), "--print-config")
    printed = capsys.readouterr().out
    assert f'"executor_token_file": "{place}/token"' in printed
    assert TOKEN not in printed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--executor-tls-cert", "cert.pem"], ["--executor-tls-key", "give certificate and key"]),
        (["--executor-tls-key", "key.pem"], ["--executor-tls-cert", "give certificate and key"]),
        (
            ["--executor-tls-cert", "cert.pem", "--executor-tls-key", "key.pem"],
            ["--executor-tls-cert", "executor_tls_ca too"],
        ),
        (
            ["--executor-token-file", "token", "--executor", "gpu.example:50052"],
            ["--executor-token-file", "gpu.example:50052 in plaintext", "executor_tls_ca"],
        ),
        (["--executor-tls-ca", "none.pem"], ["--executor-tls-ca", "none.pem", "PEM"]),
        (["--executor-tls-ca", "token"], ["--executor-tls-ca", "token cannot be used", "PEM"]),
        (
            [f"--executor-tls-{n}.pem" for n in ("ca=ca", "cert=cert", "key=other")],
            ["--executor-tls-cert", "cert.pem", "the key that belongs to it"],
        ),
        (["--executor-token-file", "none"], ["--executor-token-file", "none cannot be used"]),
        # A server's tokens file has roles in it.
        (["--executor-token-file", "tokens"], ["--executor-token-file", "and nothing else"]),
    ],
)
def test_what_cannot_be_ends_with_what_to_type(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as caught:
        parse(*flags)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"MOLORA_ROUTER_{expected[0].removeprefix('--').replace('-', '_').upper()}" in said
    assert all(part in said for part in expected)
    assert TOKEN not in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/x.sock"])
def test_a_token_may_go_to_this_machine_in_plaintext(place: Path, address: str) -> None:
    given = RouterSettings(executor=address, executor_token_file=place / "token")
    assert given.executor_files.token == place / "token"
