"""Settings of the router: where its bundle and its executor are, and what overrides the bundle.

The only module of the router that reads the environment; knows no bundle's content.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from router_service.core import Abstention, Mode
from service_chassis.settings import FieldError, ServerSettings, stays_here
from service_chassis.upstream import ClientTls, UpstreamFiles, read_token

EMBEDDED_BUNDLE = Path(__file__).resolve().parents[1] / "miniature" / "router"


class RouterSettings(ServerSettings):
    """What `molora serve router` takes."""

    model_config = SettingsConfigDict(env_prefix="MOLORA_ROUTER_")

    port: int = Field(default=50051, ge=0, le=65535)
    """gRPC port; 0 takes any free one and prints it."""
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    """Port of the Prometheus metrics; 0 takes any free one and prints it."""
    executor: str = "127.0.0.1:50052"
    """Address of the executor, host:port; answers name it to the clients."""
    executor_tls_ca: Path | None = None
    """PEM certificates that must have signed the executor's, which must name the host of
    `executor`; a changed file holds from the next call on. Unset: plaintext."""
    executor_tls_cert: Path | None = None
    """PEM certificate chain that the router shows to the executor, read again like
    `executor_tls_ca`; unset: it shows none."""
    executor_tls_key: Path | None = None
    """PEM private key of `executor_tls_cert`; read again like it."""
    executor_token_file: Path | None = None
    """Holds the token that the executor knows the router by, with the role infer; a changed file
    holds from the next call on."""
    bundle: Path = EMBEDDED_BUNDLE
    """Folder of router.onnx and router.json; default: the miniature's."""
    routing_mode: Mode | None = None
    """soft, top1 or top2, where a request does not say; unset: the bundle's."""
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Softmax temperature, where a request does not say; unset: the bundle's."""
    agent_fast_path: float | None = Field(default=None, ge=0, le=1)
    """Agent's confidence from which it is answered without a look; unset: the bundle's."""
    agent_accept: float | None = Field(default=None, ge=0, le=1)
    """Pooled probability from which the agent's expert is taken; unset: the bundle's."""
    agent_veto: float | None = Field(default=None, ge=0, le=1)
    """Pooled probability from which the agent is overruled; unset: the bundle's."""
    abstention_distance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Distance from which on no expert knows a screen; unset: the bundle's."""
    on_abstention: Abstention = Abstention.ERROR
    """error, base or top2: what happens to a screen that no expert knows."""
    audit_file: Path | None = None
    """File that gets one JSON line a request, without content; unset: no audit."""
    executor_check_s: float = Field(default=2.0, gt=0)
    """Time between two checks of what the executor runs, in seconds."""
    executor_call_max_s: float = Field(default=300.0, gt=0)
    """Longest call to the executor, in seconds; a caller's shorter deadline wins."""

    @model_validator(mode="after")
    def _check_executor_access(self) -> RouterSettings:
        if (self.executor_tls_cert is None) != (self.executor_tls_key is None):
            missing = "executor_tls_cert" if self.executor_tls_cert is None else "executor_tls_key"
            raise FieldError(missing, "it is not set", "give certificate and key together")
        if self.executor_tls_ca is not None:
            return self
        if self.executor_tls_cert is not None:
            remedy = "set executor_tls_ca too, to the CA of the executor's certificate"
            raise FieldError("executor_tls_cert", "it needs TLS", remedy)
        if self.executor_token_file is not None and not stays_here(self.executor):
            raise FieldError(
                "executor_token_file",
                f"the token would go to {self.executor} in plaintext",
                "set executor_tls_ca, or reach the executor on 127.0.0.1",
            )
        return self

    @model_validator(mode="after")
    def _check_executor_files(self) -> RouterSettings:
        ca, cert, key = self.executor_tls_ca, self.executor_tls_cert, self.executor_tls_key
        try:
            if ca is not None:
                ClientTls.read(ca, None, None)
        except OSError as error:
            remedy = "give a readable file of PEM certificates"
            raise FieldError("executor_tls_ca", f"{ca} cannot be used", remedy) from error
        try:
            if ca is not None:
                ClientTls.read(ca, cert, key)
        except OSError as error:
            remedy = "give a PEM certificate chain and the key that belongs to it"
            raise FieldError("executor_tls_cert", f"{cert} cannot be used", remedy) from error
        try:
            if self.executor_token_file is not None:
                read_token(self.executor_token_file)
        except (OSError, ValueError) as error:
            problem = f"{self.executor_token_file} cannot be used"
            remedy = "give a readable file with the token and nothing else"
            raise FieldError("executor_token_file", problem, remedy) from error
        return self

    @property
    def executor_files(self) -> UpstreamFiles:
        """What the connection to the executor needs."""
        return UpstreamFiles(
            self.executor_tls_ca,
            self.executor_tls_cert,
            self.executor_tls_key,
            self.executor_token_file,
        )
