"""Cases with real screens, results made by hand, and services that know the right answers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from molora.v1 import executor_pb2, router_pb2, types_pb2
from tests.support.stub_services import ANSWER, EXPERT_SET, StubServices, completed, decision
from training.data.calls import ToolCall, format_calls
from training.data.records import new_record, write_records
from training.evaluation.core import Answer, Case, CaseResult, Decision

EXPERTS = ("calendar", "claim-window")
COLOURS = {"calendar": "navy", "claim-window": "beige", "desktop": "black"}
EXPECTED = ToolCall.computer_use("left_click", coordinate=[500, 250])


def write_dataset(
    folder: Path, experts: Sequence[str] = EXPERTS, cases: int = 2, **metadata: Any
) -> Path:
    """Records with a screen each, `cases` of every expert; their prompts name expert and number."""
    records = []
    for expert in experts:
        for number in range(cases):
            image = f"images/{expert}/{number}.png"
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80 + number, 60), COLOURS[expert]).save(folder / image)
            prompt, stated = f"{expert} {number}", {"task_type": "click", **metadata}
            made = new_record(f"{expert}-{number}", image, prompt, [EXPECTED], stated)
            records.append(made.labelled(expert))
    write_records(folder / "held_out.jsonl", records)
    return folder / "held_out.jsonl"


def case_of(expert: str, *, name: str = "1", screen: Path | None = None, **changes: Any) -> Case:
    given: dict[str, Any] = {
        "id": f"{expert}-{name}",
        "prompt": f"the prompt of {name}",
        "system": None,
        "target": format_calls([EXPECTED]),
        "screen": screen or Path(f"{expert}-{name}.png"),
        "width": 80,
        "height": 60,
        "expert": expert,
        "task_type": "click",
        "source": "here",
        "expected": (EXPECTED,),
        "tolerance": None,
    }
    return Case(**{**given, **changes})


def answer(*, right: bool, loss: float = 0.5, cut: bool = False) -> Answer:
    calls = (EXPECTED,) if right else ()
    return Answer("the answer's text", calls, right, cut, loss)


def result_of(
    case: Case,
    probabilities: Mapping[str, float] | None,
    *,
    passing: Sequence[str] | None = None,
    modes: Mapping[str, bool] | None = None,
    second: str | None = None,
    other_screen: str = "claim-window",
    with_other_screen: str | None = None,
    without_text: str | None = None,
) -> CaseResult:
    """A result whose routed answers are those of the chosen expert.

    Args:
        case: The case.
        probabilities: What the router said; None: it abstained.
        passing: Experts that answer rightly; the own one if None.
        modes: Whether the answers of the modes that are not routed pass; no if not named.
        second: Chosen when the first is masked.
        other_screen: Of the control.
        with_other_screen: Of the control.
        without_text: Of the control.
    """
    experts = list(probabilities or dict.fromkeys(EXPERTS))
    passing = (case.expert,) if passing is None else passing
    by_expert = {name: answer(right=name in passing) for name in experts}
    decisions: dict[str, Decision | None] = dict.fromkeys(("soft", "top1", "top2"))
    answers: dict[str, Answer | None] = {
        mode: answer(right=(modes or {}).get(mode, False), loss=2.0)
        for mode in ("uniform", "random", "base")
    }
    answers |= {"oracle": by_expert[case.expert], "soft": None, "top1": None, "top2": None}
    if probabilities is not None:
        best = max(probabilities, key=probabilities.__getitem__)
        for mode in decisions:
            gates = dict(probabilities) if mode != "top1" else {best: 1.0}
            decisions[mode] = Decision(gates, probabilities, "ROUTER", 0.3)
            answers[mode] = by_expert[best]
    return CaseResult(
        case, decisions, answers, by_expert, second, other_screen, with_other_screen, without_text
    )


def knowing(stub: StubServices, experts: Sequence[str] = EXPERTS, version: str = "") -> None:
    """Make services that route by the first word of the text, or else by the screen.

    An answer is right if more than half of the gates are those of the expert that the text names;
    the screen's context is called after its expert's colour, as the text without words is. The
    router's bundle is of this version.
    """
    screens = {_pixels(COLOURS[name]): name for name in experts}

    def healthy(method: str, request: Any) -> Iterator[Any]:
        if method == "Route":
            yield _routed(stub, request, experts, screens)
        elif method == "Generate":
            yield from _generated(request)
        elif method == "GetServerInfo":
            limits = executor_pb2.Limits(slots=3)
            yield executor_pb2.GetServerInfoResponse(expert_set=EXPERT_SET, limits=limits)
        elif method == "GetRouterInfo":
            known = [types_pb2.ExpertIdentity(name=name, digest="d" * 64) for name in experts]
            yield router_pb2.GetRouterInfoResponse(
                router_version=version, experts=known, temperature=1.0, serving=True
            )
        else:
            yield from StubServices.healthy(stub, method, request)

    stub.healthy = healthy  # type: ignore[method-assign]


def _pixels(colour: str) -> tuple[int, ...]:
    return Image.new("RGB", (1, 1), colour).getpixel((0, 0))  # type: ignore[return-value]


def _screen_expert(screen: types_pb2.Screen, screens: Mapping[tuple[int, ...], str]) -> str:
    if screen.context_id:
        return screen.context_id.removeprefix("ctx-")

    with Image.open(io.BytesIO(screen.data)) as image:
        return screens[image.getpixel((0, 0))]  # type: ignore[index]


def _routed(
    stub: StubServices, request: Any, experts: Sequence[str], screens: Mapping[tuple[int, ...], str]
) -> router_pb2.RouteResponse:
    shown = _screen_expert(request.screen, screens)
    said = request.prompt.text.split()[0]
    own = said if said in experts else shown
    rest = 0.1 / max(len(experts) - 1, 1)
    probabilities = {name: 0.9 if name == own else rest for name in experts}
    masked = set(request.options.masked_experts)
    left = {name: p for name, p in probabilities.items() if name not in masked}
    kept = {types_pb2.ROUTING_MODE_TOP1: 1, types_pb2.ROUTING_MODE_TOP2: 2}
    best = sorted(left, key=lambda name: -left[name])[: kept.get(request.options.mode)]
    total = sum(left[name] for name in best)
    gates = {name: left[name] / total for name in best}
    return router_pb2.RouteResponse(
        decision=decision(
            gates=types_pb2.Gates(weights=gates), probabilities=probabilities, confidence=0.9
        ),
        context_id=f"ctx-{shown}",
        executor=stub.address,
    )


def _generated(request: Any) -> Iterator[executor_pb2.GenerateResponse]:
    own = request.prompt.text.split()[0]
    right = request.gates.weights.get(own, 0.0) > 0.5
    text = format_calls([EXPECTED]) if right else ANSWER
    yield executor_pb2.GenerateResponse(delta=executor_pb2.Delta(text=text, token_ids=[1]))
    yield executor_pb2.GenerateResponse(completed=completed(gates=request.gates))
