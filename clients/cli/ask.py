"""`molora route`, `predict` and `generate`. Knows the SDK and how to print its results."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from clients.cli import connection, output
from clients.cli.connection import (
    Executor,
    Json,
    Router,
    TimeoutS,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    client_tls,
    connected,
)
from molora_client import (
    AgentHint,
    Generation,
    Prompt,
    Routed,
    RoutingMode,
    RoutingOptions,
    TextStream,
)


class Mode(str, Enum):
    """Values of `--mode`."""

    soft = "soft"
    top1 = "top1"
    top2 = "top2"


PromptText = Annotated[str, typer.Argument(help="The instruction.", metavar="PROMPT")]
System = Annotated[str | None, typer.Option(help="Replaces the expert's system prompt.")]
ScreenFile = Annotated[
    Path, typer.Option("--screen", exists=True, dir_okay=False, help="PNG or JPEG file.")
]
ModeOption = Annotated[Mode | None, typer.Option(help="How gates are reduced after masking.")]
Mask = Annotated[list[str] | None, typer.Option(help="Expert that must get no weight; repeatable.")]
Hint = Annotated[str | None, typer.Option(help="The expert that you would choose.")]
HintConfidence = Annotated[
    float | None, typer.Option(min=0, max=1, help="How sure you are of --hint.")
]
FastPath = Annotated[bool, typer.Option("--fast-path", help="Trust --hint without a look.")]
Temperature = Annotated[float | None, typer.Option(help="Replaces the bundle's temperature.")]
Override = Annotated[str | None, typer.Option(help="Route to this expert whatever the head says.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Unset: the server's default.")]


def route(
    prompt: PromptText,
    screen: ScreenFile,
    system: System = None,
    mode: ModeOption = None,
    mask: Mask = None,
    hint: Hint = None,
    hint_confidence: HintConfidence = None,
    fast_path: FastPath = False,
    temperature: Temperature = None,
    override: Override = None,
    router: Router = connection.ROUTER,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Ask the router which experts should see a screen."""
    agent = _hint(hint, hint_confidence, fast_path)
    options = RoutingOptions(_mode(mode), temperature, tuple(mask or ()), override)
    with connected(
        router=router,
        timeout_s=timeout_s,
        tls=client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    ) as client:
        routed = client.route(Prompt(prompt, system), screen, hint=agent, options=options)
    if as_json:
        output.print_json(connection.plain(routed))
    else:
        _show_routed(routed)


def predict(
    prompt: PromptText,
    screen: ScreenFile,
    system: System = None,
    mode: ModeOption = None,
    mask: Mask = None,
    hint: Hint = None,
    hint_confidence: HintConfidence = None,
    fast_path: FastPath = False,
    temperature: Temperature = None,
    override: Override = None,
    max_new_tokens: MaxNewTokens = None,
    router: Router = connection.ROUTER,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Route a screen and generate the answer, in one call."""
    agent = _hint(hint, hint_confidence, fast_path)
    options = RoutingOptions(_mode(mode), temperature, tuple(mask or ()), override)
    with connected(
        router=router,
        timeout_s=timeout_s,
        tls=client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    ) as client:
        stream = client.predict_stream(
            Prompt(prompt, system),
            screen,
            hint=agent,
            options=options,
            max_new_tokens=max_new_tokens,
        )
        _show_stream(stream, as_json)
    if not as_json:
        _show_routed(stream.result.routed)
        _show_generation(stream.result.generation)


def generate(
    prompt: PromptText,
    screen: ScreenFile,
    expert: Annotated[str | None, typer.Option(help="This expert alone.")] = None,
    gate: Annotated[
        list[str] | None, typer.Option(metavar="NAME=WEIGHT", help="One gate; repeatable.")
    ] = None,
    base_only: Annotated[bool, typer.Option("--base-only", help="No expert at all.")] = False,
    system: System = None,
    mode: ModeOption = None,
    mask: Mask = None,
    max_new_tokens: MaxNewTokens = None,
    executor: Executor = connection.EXECUTOR,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Generate under gates that you choose: exactly one of --expert, --gate and --base-only."""
    if [expert is not None, bool(gate), base_only].count(True) != 1:
        raise typer.BadParameter("give exactly one of --expert, --gate and --base-only")
    with connected(
        executor=executor,
        timeout_s=timeout_s,
        tls=client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    ) as client:
        stream = client.generate_stream(
            Prompt(prompt, system),
            screen,
            gates=_gates(gate) if gate else None,
            expert=expert,
            base_only=base_only,
            mode=_mode(mode),
            masked_experts=tuple(mask or ()),
            max_new_tokens=max_new_tokens,
        )
        _show_stream(stream, as_json)
    if not as_json:
        _show_generation(stream.result)


def _hint(expert: str | None, confidence: float | None, fast_path: bool) -> AgentHint | None:
    if expert is None:
        if confidence is not None or fast_path:
            raise typer.BadParameter("--hint-confidence and --fast-path need --hint")
        return None
    return AgentHint(expert, confidence, fast_path or None)


def _mode(mode: Mode | None) -> RoutingMode | None:
    return RoutingMode(mode.value) if mode else None


def _gates(pairs: list[str]) -> dict[str, float]:
    gates: dict[str, float] = {}
    for pair in pairs:
        name, equals, weight = pair.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            equals = ""
        if not (name and equals) or name in gates:
            raise typer.BadParameter(
                "write each gate once, as NAME=WEIGHT, e.g. --gate calendar=0.7"
            )
        gates[name] = value
    return gates


def _show_stream(stream: TextStream[Any], as_json: bool) -> None:
    shown = False
    try:
        for piece in stream:
            if not as_json:
                print(piece, end="", flush=True)
                shown = True
    finally:
        if shown:
            print()
    if as_json:
        output.print_json(connection.plain(stream.result))


def _show_routed(routed: Routed) -> None:
    names = sorted({**routed.probabilities, **routed.gates}, key=lambda n: -routed.gates.get(n, 0))
    rows = [[name, routed.gates.get(name, 0.0), routed.probabilities.get(name)] for name in names]
    output.table(None, ("expert", "gate", "probability"), rows)
    output.console.print(
        f"reason {routed.reason.value}  confidence {routed.confidence:.3f}  "
        f"entropy {routed.entropy:.3f} nats  router {routed.router_version}  "
        f"{routed.timings.total_ms:.0f} ms"
    )
    output.console.print(f"context {routed.context_id or '-'}  executor {routed.executor or '-'}")


def _show_generation(generation: Generation) -> None:
    applied = generation.applied
    ran = ", ".join(f"{name} {gate:.3f}" for name, gate in applied.gates.items() if gate > 0)
    timings = generation.timings
    output.console.print(
        f"applied {ran or 'base only'}  finish {generation.finish_reason.value}  "
        f"{generation.usage.completion_tokens} tokens  "
        f"first token {timings.time_to_first_token_ms:.0f} ms  total {timings.total_ms:.0f} ms"
    )
