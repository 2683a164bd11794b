"""Settings of a server: flags over environment over file over defaults, checked once.

Knows how a server is reached and stopped; knows no setting of a single service.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from service_chassis.auth import TokenTable
from service_chassis.tls import Tls, TlsFiles


class FieldError(ValueError):
    """A setting that cannot be used.

    Args:
        field: Name of the setting, as in the settings class.
        problem: What is wrong, with the value unless it is secret.
        remedy: What to do about it.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.field = field


class ServerSettings(BaseSettings):
    """What every server has. Subclasses set `env_prefix` and add their own fields."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    """Address to listen on; anything beyond loopback needs TLS."""
    port: int = Field(default=0, ge=0, le=65535)
    """gRPC port; 0 takes any free one and prints it."""
    metrics_host: str = "127.0.0.1"
    """Address of the Prometheus metrics; TLS and tokens hold for them too."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus metrics; 0 takes any free one and prints it."""
    tls_cert: Path | None = None
    """PEM certificate chain of this server; a changed file holds from the next handshake on."""
    tls_key: Path | None = None
    """PEM private key of `tls_cert`; read again like it."""
    tls_client_ca: Path | None = None
    """PEM certificates that must have signed a client's certificate, read again like `tls_cert`;
    unset: none is asked for."""
    tokens_file: Path | None = None
    """Bearer tokens, one `infer|metrics|admin <token>` a line; a changed file holds from the next
    call on. Unset: every caller may do all."""
    drain_grace_s: float = Field(default=30.0, ge=0)
    """How long running calls may go on after SIGTERM, in seconds."""
    call_max_s: float = Field(default=900.0, gt=0)
    """Longest that a call may take, whatever its deadline, in seconds; health may be watched on."""
    max_message_bytes: int = Field(default=16 * 2**20, ge=2**16)
    """Largest request and largest response, in bytes."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""

    @model_validator(mode="after")
    def _check_transport(self) -> ServerSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise FieldError(missing, "it is not set", "give certificate and key together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise FieldError("tls_client_ca", "it needs TLS", "set tls_cert and tls_key too")
        for name in ("host", "metrics_host"):
            host = getattr(self, name)
            if self.tls_cert is None and not is_loopback(host):
                raise FieldError(
                    name,
                    f"{host} is beyond loopback without TLS",
                    "set tls_cert and tls_key, or listen on 127.0.0.1",
                )
        return self

    @model_validator(mode="after")
    def _check_certificates(self) -> ServerSettings:
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise FieldError(name, f"{path} is not a file", "give the path of a PEM file")
        files = self.tls_files
        if files is None:
            return self
        try:
            Tls.read(TlsFiles(files.certificate, files.key))
        except OSError as error:
            remedy = "give a PEM certificate chain and the key that belongs to it"
            raise FieldError("tls_cert", f"{self.tls_cert} cannot be used", remedy) from error
        try:
            Tls.read(files)
        except OSError as error:
            problem = f"{self.tls_client_ca} cannot be used"
            raise FieldError("tls_client_ca", problem, "give PEM certificates") from error
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> ServerSettings:
        if self.tokens_file is not None:
            try:
                TokenTable.read(self.tokens_file)
            except (OSError, ValueError) as error:
                raise FieldError(
                    "tokens_file",
                    f"{self.tokens_file} cannot be used: {error}",
                    "give a readable file with one '<role> <token>' a line",
                ) from error
        return self

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files of TLS; None for plaintext."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)


Settings = TypeVar("Settings", bound=ServerSettings)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stays_here(address: str) -> bool:
    """Whether what is sent to `host:port`, `[v6]:port` or `unix:path` never leaves this machine."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return address.startswith("unix:") or is_loopback(host)


def parse_settings(cls: type[Settings], argv: Sequence[str], prog: str) -> Settings:
    """Settings from flags, environment, file and defaults, in this order of precedence.

    Every field has a flag (`tls_cert` is `--tls-cert`) except secrets, which other users of the
    machine would see. `--config FILE` names a YAML file (JSON is YAML) with fields as keys.

    Args:
        cls: The settings class.
        argv: Arguments without the program's name.
        prog: The command as its user types it.

    Returns:
        Checked settings.

    Raises:
        SystemExit: 2 with the setting's name and a remedy on stderr, if a setting is wrong; 0
            after `--help`, `--check-config` and `--print-config`.
    """
    parser = _parser(cls, prog)
    flags = vars(parser.parse_args(argv))
    config = flags.pop("config")
    check_only, print_only = flags.pop("check_config"), flags.pop("print_config")
    try:
        environment = EnvSettingsSource(cls)()
        settings = cls(**{**_read_file(config), **environment, **_pairs_as_mappings(cls, flags)})
    except ValidationError as error:
        parser.exit(2, "".join(f"{prog}: {line}\n" for line in _explain(cls, error)))
    except (FieldError, SettingsError) as error:
        parser.exit(2, f"{prog}: {error}\n")
    if print_only:
        print(json.dumps(settings.model_dump(mode="json"), indent=2))
    if check_only:
        print("configuration ok")
    if print_only or check_only:
        parser.exit(0)
    return settings


def _parser(cls: type[ServerSettings], prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("--check-config", action="store_true", help="check the settings and exit")
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings in force and exit"
    )
    for name, info in cls.model_fields.items():
        kind = _plain_type(info.annotation)
        if kind is SecretStr:
            continue
        shape: dict[str, Any] = {}
        if kind is bool:
            shape = {"action": argparse.BooleanOptionalAction}
        elif kind is dict:
            shape = {"nargs": "+", "action": "extend", "metavar": "NAME=VALUE"}
        elif kind in (list, tuple):
            shape = {"nargs": "+", "action": "extend", "metavar": "VALUE"}
        else:
            shape = {"metavar": "VALUE"}
        text = f"{info.description} [{_variable(cls, name)}]".replace("%", "%%")
        parser.add_argument(_flag(name), default=argparse.SUPPRESS, help=text, **shape)
    return parser


def _plain_type(annotation: Any) -> Any:
    """The type that says how a flag is written: `X | None` is X, `dict[str, Y]` is dict."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    origin = typing.get_origin(annotation) or annotation
    return dict if isinstance(origin, type) and issubclass(origin, Mapping) else origin


def _pairs_as_mappings(cls: type[ServerSettings], flags: dict[str, Any]) -> dict[str, Any]:
    """Turn `NAME=VALUE` lists into mappings."""
    values = dict(flags)
    for name, value in flags.items():
        if _plain_type(cls.model_fields[name].annotation) is not dict:
            continue
        pairs = [item.partition("=") for item in value]
        if any(not separator or not key for key, separator, _ in pairs):
            raise FieldError(
                name, f"{_flag(name)} got {' '.join(value)}", "write every value as NAME=VALUE"
            )
        values[name] = {key: rest for key, _, rest in pairs}
    return values


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FieldError(
            "config", f"--config {path} cannot be read: {error}", "give a YAML file of settings"
        ) from error
    if not isinstance(content, dict):
        raise FieldError("config", f"--config {path} is not a mapping", "write 'name: value' lines")
    return content


def _explain(cls: type[ServerSettings], error: ValidationError) -> list[str]:
    """One line a problem: the flag, the variable, what is wrong and what is expected."""
    lines = []
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        name = cause.field if isinstance(cause, FieldError) else str(problem["loc"][0])
        if name not in cls.model_fields:
            lines.append(f"{name}: there is no such setting; --help lists them")
            continue
        info = cls.model_fields[name]
        where = f"{_flag(name)} ({_variable(cls, name)})"
        if isinstance(cause, FieldError):
            lines.append(f"{where}: {cause}")
            continue
        got = "" if _plain_type(info.annotation) is SecretStr else f" got {problem['input']!r}:"
        lines.append(f"{where}:{got} {problem['msg']}. It is: {info.description}")
    return lines


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(cls: type[ServerSettings], name: str) -> str:
    return f"{cls.model_config.get('env_prefix', '')}{name}".upper()
