"""Checks of one server's place that start nothing: versions, settings, ports, files, memory.

Knows what a server needs from its machine; knows no call.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clients.cli.findings import BAD_SETTINGS, NOT_LOADABLE, Finding, State, ok, skipped

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from executor_service.settings import ExecutorSettings
    from router_service.settings import RouterSettings
    from service_chassis.settings import ServerSettings

_SHOWN = ("grpcio", "protobuf", "numpy", "onnxruntime", "torch", "transformers")
_MIB, _GIB = 2**20, 2**30
_SCALARS = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_versions(service: str) -> Finding:
    """Whether what the service's extra asks for is installed.

    Args:
        service: `router` or `executor`; also the name of the extra.
    """
    check, install = f"{service}: packages", f"pip install 'molora[{service}]'"
    try:
        asked = list(_requirements(service))
    except ModuleNotFoundError:
        return Finding(check, State.FAILED, f"the extra [{service}] is not installed", install)
    wrong, shown = [], {"python": platform.python_version()}
    for requirement in asked:
        version = _installed(requirement.name)
        if version is None or version not in requirement.specifier:
            asked_for = f"{requirement.name}{requirement.specifier}"
            wrong.append(f"{asked_for} ({version or 'missing'})")
        elif requirement.name in _SHOWN:
            shown[requirement.name] = version
    if wrong:
        return Finding(check, State.FAILED, ", ".join(wrong), install)
    return ok(check, ", ".join(f"{name} {version}" for name, version in shown.items()))


def check_settings(
    cls: type[ServerSettings], service: str, flags: Sequence[str]
) -> tuple[Finding, ServerSettings | None]:
    """The settings as the server would read them, and whether it would take them."""
    from service_chassis.settings import parse_settings

    check, said = f"{service}: settings", io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            settings = parse_settings(cls, flags, f"molora serve {service}")
    except SystemExit:
        lines = said.getvalue().strip().splitlines() or ["they say no more"]
        remedy = f"molora serve {service} --help tells what each may be"
        return Finding(check, State.FAILED, lines[-1], remedy, BAD_SETTINGS), None
    changed = sorted(settings.model_fields_set)
    return ok(check, f"set: {', '.join(changed)}" if changed else "all defaults"), settings


def check_port(host: str, port: int, what: str, service: str, *, runs: bool) -> Finding:
    """Whether a port can be had; `runs` says that the service itself has it already."""
    check = f"{service}: {what} port"
    if runs:
        return ok(check, f"{host}:{port} is the running {service}'s")
    if port == 0:
        return ok(check, "any free one")
    try:
        _bind(host, port)
    except OSError as error:
        remedy = f"free it, choose another, or, if a {service} with TLS has it, give --tls-ca"
        return Finding(check, State.FAILED, f"{host}:{port}: {error.strerror}", remedy)
    return ok(check, f"{host}:{port} is free")


def check_model_files(settings: ExecutorSettings) -> Finding:
    """Whether there is a checkpoint, before anything waits for it."""
    check, config = "executor: checkpoint", settings.model / "config.json"
    if not config.is_file():
        remedy = "name a checkpoint directory with --model"
        return Finding(check, State.FAILED, f"{config} is missing", remedy, NOT_LOADABLE)
    return ok(check, f"{settings.model} ({_size(_weights_bytes(settings.model))})")


def check_device(settings: ExecutorSettings) -> Finding:
    """What the model would run on."""
    import torch

    check = "executor: device"
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        return ok(check, f"{facts.name}, {_size(free)} of {_size(total)} free")
    if settings.device == "cuda":
        remedy = "install a CUDA build of torch and its driver, or use --device cpu"
        return Finding(check, State.FAILED, "torch finds no CUDA device", remedy, NOT_LOADABLE)
    return ok(check, f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def check_memory(settings: ExecutorSettings) -> Finding:
    """Whether weights, slots and kept things fit into what is free; experts are not counted."""
    import torch

    check, on_cuda = "executor: memory", torch.cuda.is_available() and settings.device != "cpu"
    try:
        needed = needed_bytes(settings, on_cuda=on_cuda)
    except (KeyError, TypeError, ValueError):
        remedy = "copy the checkpoint again; its config.json is not that of a Qwen3-VL"
        return Finding(check, State.FAILED, "cannot be worked out", remedy, NOT_LOADABLE)
    free = torch.cuda.mem_get_info()[0] if on_cuda else _available_bytes()
    if free is None:
        return skipped(check, f"about {_size(needed)} needed, unknown how much is free")
    found = f"about {_size(needed)} needed, {_size(free)} free"
    if needed > free:
        remedy = "lower --slots or --slot-tokens, or use a larger device"
        return Finding(check, State.FAILED, found, remedy, NOT_LOADABLE)
    return ok(check, found)


def needed_bytes(settings: ExecutorSettings, *, on_cuda: bool) -> int:
    """What weights, slots, held screens and kept prefixes take at most, in bytes.

    Args:
        settings: The executor's.
        on_cuda: What `auto` stands for.

    Returns:
        Bytes; keys and values are layers x 2 x heads x head size for each token of each slot.
    """
    config = json.loads((settings.model / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    served = settings.dtype
    if served == "auto":
        served = "bfloat16" if on_cuda else "float32"
    stored = str(text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or served)
    scalar = _SCALARS[served]
    weights = _weights_bytes(settings.model) * scalar // _SCALARS.get(stored, scalar)
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    per_token: int = text["num_hidden_layers"] * 2 * text["num_key_value_heads"] * head * scalar
    wanted = settings.slot_tokens or settings.max_prompt_tokens + settings.max_new_tokens
    tokens = min(wanted, int(text["max_position_embeddings"])) * settings.slots
    return weights + per_token * tokens + settings.context_bytes + settings.prefix_bytes


def check_bundle_files(settings: RouterSettings) -> Finding:
    """Whether there is a bundle that belongs together."""
    from router_service.bundle import load_bundle
    from router_service.errors import BundleError

    check = "router: bundle"
    try:
        bundle = load_bundle(settings.bundle)
    except BundleError as error:
        remedy = "export it again, or name another with --bundle"
        return Finding(check, State.FAILED, str(error), remedy, NOT_LOADABLE)
    names = ", ".join(expert.name for expert in bundle.manifest.experts)
    return ok(check, f"{settings.bundle} for {names}")


def _requirements(extra: str) -> Iterator[Requirement]:
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("molora") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "molora":
            for other in requirement.extras:
                yield from _requirements(other)
        else:
            yield requirement


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host, port), family=family).close()


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"


def _weights_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _available_bytes() -> int | None:
    """Memory that can be had without swapping, also under a container's limit."""
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{kind}").read_text()) for kind in ("max", "current"))
        free.append(limit - used)
    return min(free, default=None)
