"""Settings of the router: where its bundle and its executor are, and what overrides the bundle.

The only module of the router that reads the environment; knows no bundle's content.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from router_service.core import Abstention, Mode
from service_chassis.settings import ServerSettings

EMBEDDED_BUNDLE = Path(__file__).resolve().parents[1] / "miniature" / "router"


class RouterSettings(ServerSettings):
    """What `molora serve router` takes."""

    model_config = SettingsConfigDict(env_prefix="MOLORA_ROUTER_")

    port: int = Field(default=50051, ge=0, le=65535)
    """gRPC port; 0 takes any free one and prints it."""
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    """Port of the Prometheus metrics on loopback; 0 takes any free one and prints it."""
    executor: str = "127.0.0.1:50052"
    """Address of the executor, host:port; answers name it to the clients."""
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
