import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from service_chassis.settings import ServerSettings, parse_settings

TLS = Path(__file__).with_name("tls")
SERVER_TLS = ["--tls-cert", str(TLS / "server.pem"), "--tls-key", str(TLS / "server.key")]


class CoffeeSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="TEST_COFFEE_")

    port: int = Field(default=4711, ge=0, le=65535)
    """gRPC port."""
    beans: Mapping[str, Path] = {}
    """Bean name to its sack."""
    roasts: tuple[str, ...] = ("dark",)
    """Roasts that are offered."""
    milk: bool = False
    """Whether there is milk."""
    size: Literal["small", "large"] = "small"
    """Cup size; 100 % full."""
    till_code: SecretStr = SecretStr("default-code")
    """Opens the till."""


def parse(*argv: str) -> CoffeeSettings:
    return parse_settings(CoffeeSettings, argv, "coffee serve")


def exit_of(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    return caught.value.code


def test_flag_over_environment_over_file_over_default(monkeypatch, tmp_path):
    file = tmp_path / "coffee.yaml"
    file.write_text("port: 1\nmetrics_port: 1\nsize: large\n")
    monkeypatch.setenv("TEST_COFFEE_PORT", "2")
    monkeypatch.setenv("TEST_COFFEE_METRICS_PORT", "2")
    settings = parse("--config", str(file), "--port", "3")
    assert (settings.port, settings.metrics_port, settings.size) == (3, 2, "large")
    assert settings.drain_grace_s == 30.0


def test_flags_of_every_shape():
    settings = parse(
        *("--beans", "arabica=/a", "robusta=/b=c", "--beans", "liberica=/d"),
        *("--roasts", "light", "medium", "--milk", "--size", "large"),
    )
    assert settings.beans == {
        "arabica": Path("/a"),
        "robusta": Path("/b=c"),
        "liberica": Path("/d"),
    }
    assert settings.roasts == ("light", "medium")
    assert settings.milk is True
    assert parse("--no-milk").milk is False


def test_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("TEST_COFFEE_PORT", "")
    assert parse().port == 4711


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--port", "99999"], ["--port (TEST_COFFEE_PORT)", "'99999'", "65535"]),
        (["--size", "huge"], ["--size", "'huge'", "'small' or 'large'"]),
        (["--host", "0.0.0.0"], ["--host", "0.0.0.0", "tls_cert"]),
        (["--tls-cert", "x.pem"], ["--tls-key", "together"]),
        (
            ["--tls-cert", str(TLS / "server.pem"), "--tls-key", str(TLS / "client.key")],
            ["--tls-cert", "server.pem", "the key that belongs to it"],
        ),
        (
            ["--tls-cert", __file__, "--tls-key", str(TLS / "server.key")],
            ["--tls-cert", "test_settings.py", "PEM"],
        ),
        (
            [*SERVER_TLS, "--tls-client-ca", __file__],
            ["--tls-client-ca", "test_settings.py", "PEM"],
        ),
        (["--tls-client-ca", "x.pem"], ["--tls-client-ca", "tls_cert"]),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], ["--tls-cert", "no.pem", "PEM"]),
        (["--tokens-file", "/no/such"], ["--tokens-file", "/no/such", "<role> <token>"]),
        (["--beans", "arabica"], ["--beans", "arabica", "NAME=VALUE"]),
        (["--config", "/no/such.yaml"], ["--config", "/no/such.yaml", "YAML"]),
    ],
)
def test_bad_setting_exits_2_with_name_value_and_remedy(capsys, argv, expected):
    assert exit_of(*argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("coffee serve: ")
    for part in expected:
        assert part in message


def test_unknown_key_in_the_file_is_refused(capsys, tmp_path):
    file = tmp_path / "coffee.yaml"
    file.write_text("prot: 1\n")
    assert exit_of("--config", str(file)) == 2
    assert "prot: there is no such setting" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["- a list\n", "a: [\n", "\x00"])
def test_file_that_is_no_mapping_is_refused(capsys, tmp_path, content):
    file = tmp_path / "coffee.yaml"
    file.write_text(content)
    assert exit_of("--config", str(file)) == 2
    assert str(file) in capsys.readouterr().err


def test_bad_json_in_the_environment_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("TEST_COFFEE_BEANS", "arabica")
    assert exit_of() == 2
    assert "beans" in capsys.readouterr().err


def test_unknown_flag_exits_2():
    assert exit_of("--prot", "1") == 2


def test_print_config_masks_secrets_and_can_be_read_back(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_COFFEE_TILL_CODE", "very-secret")
    assert exit_of("--print-config", "--port", "5") == 0
    printed = capsys.readouterr().out
    assert "very-secret" not in printed
    shown = json.loads(printed)
    assert shown["port"] == 5
    assert set(shown["till_code"]) == {"*"}
    file = tmp_path / "again.yaml"
    file.write_text(printed)
    assert parse("--config", str(file)).port == 5


def test_a_wrong_secret_is_not_quoted(capsys, tmp_path):
    file = tmp_path / "coffee.yaml"
    file.write_text("till_code: [very-secret]\n")
    assert exit_of("--config", str(file)) == 2
    message = capsys.readouterr().err
    assert "--till-code" in message or "TILL_CODE" in message
    assert "very-secret" not in message


def test_secrets_have_no_flag(capsys):
    assert exit_of("--till-code", "x") == 2


def test_check_config(capsys):
    assert exit_of("--check-config") == 0
    assert capsys.readouterr().out == "configuration ok\n"
    assert exit_of("--check-config", "--port", "-1") == 2


def test_help_names_every_setting_and_its_variable(capsys):
    assert exit_of("--help") == 0
    text = capsys.readouterr().out
    for field in CoffeeSettings.model_fields:
        if field != "till_code":
            assert f"--{field.replace('_', '-')}" in text
            assert f"TEST_COFFEE_{field.upper()}" in text.replace("\n", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_tls(host):
    assert parse("--host", host).host == host


def test_beyond_loopback_with_tls():
    assert parse("--host", "0.0.0.0", *SERVER_TLS).host == "0.0.0.0"


@pytest.mark.parametrize("field", list(ServerSettings.model_fields))
def test_every_field_is_documented(field):
    assert ServerSettings.model_fields[field].description
