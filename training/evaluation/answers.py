"""Answers that were given before: greedy decoding gives the same again, so nobody is asked twice.

Knows what an answer depends on, and a file; asks nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.evaluation.core import Answer, Case
from training.scoring import matches, parse_calls

LayerGates = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Said:
    """What the services answered; whether it is right is the case's to say.

    Attributes:
        text: As it was generated.
        cut: Whether it was as long as an answer may be, and ended there.
        loss: Mean negative log-likelihood of the case's target, nats a token.
    """

    text: str
    cut: bool
    loss: float

    def on(self, case: Case) -> Answer:
        """Scored as an answer to a case."""
        calls = parse_calls(self.text)
        right = matches(case.expected, calls, case.tolerance)
        return Answer(self.text, calls, right, self.cut, self.loss)


class AnswerBook:
    """Answers by what was asked, of one evaluation or of several over the same experts.

    Args:
        path: JSONL file that keeps them for the next process; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._said: dict[str, Said] = {}
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            self._said = dict(_read(text.splitlines()))
            if not text.endswith("\n"):
                path.write_text(f"{text}\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._said)

    def find(self, question: str) -> Said | None:
        """What was answered to a question; see `question_of`."""
        return self._said.get(question)

    def add(self, question: str, said: Said) -> None:
        """Keeps an answer."""
        self._said[question] = said
        if self._path is not None:
            line = json.dumps({"question": question, **vars(said)})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def question_of(
    case: Case, gates: Mapping[str, float], layers: LayerGates, *asked: str | int
) -> str:
    """sha256 (hex) of all that an answer depends on.

    Args:
        case: Whose prompt and screen are meant.
        gates: For all layers; zeros say nothing.
        layers: By decoder layer.
        asked: What else, such as the digest of the experts.
    """
    screen = hashlib.sha256(case.screen.read_bytes()).hexdigest()
    by_layer = [[at, _active(own)] for at, own in sorted(layers.items())]
    parts = [case.prompt, case.system, case.target, screen, _active(gates), by_layer, *asked]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _active(gates: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted((name, gate) for name, gate in gates.items() if gate > 0)


def _read(lines: Iterable[str]) -> Iterable[tuple[str, Said]]:
    for line in lines:
        try:
            stated = json.loads(line)
        except ValueError:
            # The last line of a process that was killed; that question is asked again.
            continue
        yield stated.pop("question"), Said(**stated)
