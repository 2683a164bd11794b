"""Which expert a foreign record belongs to, by rules; knows neither images nor models.

A record's own `adapter` decides. Without one, every rule that matches must say the same; a record
that no rule matches, or two contradict on, is reported and left out, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from training.data.records import Refusal, iter_rows, write_rows

_TASK_TYPES = {
    "click_calendar_day": "calendar",
    "click_calendar_button": "calendar",
    "click_top_buttons": "calendar",
    "click_bottom_buttons": "calendar",
    "scroll-grid": "claim-window",
    "provider-dropdown": "claim-window",
    "select-provider": "claim-window",
    "click-billing-provider": "claim-window",
    "click-treating-provider": "claim-window",
    "click-claim-form": "claim-window",
    "select-claim-form": "claim-window",
    "scroll-page-up": "claim-window",
    "scroll-page-down": "claim-window",
}
_CONDITIONS = ("task_type", "id_contains", "image_contains", "image_name_starts")


@dataclass(frozen=True)
class Row:
    """What the rules look at; a part that is absent or no text is empty."""

    id: str
    image: str
    task_type: str

    @property
    def image_name(self) -> str:
        """The last part of the image's path."""
        return PurePosixPath(self.image.replace("\\", "/")).name


@dataclass(frozen=True)
class Rule:
    """A named condition and the label it gives."""

    name: str
    label: str
    matches: Callable[[Row], bool]


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one row.

    Args:
        label: The expert's name; None where it is not known.
        rule: The first rule that matched.
        labels: Every label that some rule gave, in the rules' order.
    """

    label: str | None
    rule: str | None
    labels: tuple[str, ...]

    @property
    def contradicts(self) -> bool:
        """Whether rules gave different labels."""
        return len(self.labels) > 1


@dataclass(frozen=True)
class Labelling:
    """What became of a file.

    Args:
        labelled: Label to how many rows got it.
        rules: Rule to how many rows it decided.
        unmatched: Line numbers that no rule matched.
        contradicting: Line number to the labels that rules disagree on.
        refused: Lines that are no records.
    """

    labelled: Mapping[str, int]
    rules: Mapping[str, int]
    unmatched: tuple[int, ...]
    contradicting: Mapping[int, tuple[str, ...]]
    refused: tuple[Refusal, ...]

    @property
    def left_out(self) -> int:
        """How many rows were not written."""
        return len(self.unmatched) + len(self.contradicting) + len(self.refused)


def _built_in() -> Iterator[Rule]:
    for task_type, label in _TASK_TYPES.items():
        yield Rule(f"task_type {task_type}", label, _conditions({"task_type": [task_type]}))
    yield Rule(
        "task_type scroll-to-date with a claim image",
        "claim-window",
        lambda row: row.task_type == "scroll-to-date" and "claim" in row.image_name,
    )
    yield Rule(
        "id contains edit-claim-window",
        "claim-window",
        lambda row: "edit-claim-window" in row.id,
    )
    yield Rule(
        "image name contains edit-claim-window",
        "claim-window",
        lambda row: "edit-claim-window" in row.image_name,
    )
    yield Rule(
        "image name is a calendar's",
        "calendar",
        lambda row: row.image_name.startswith("screen_") or "calendar" in row.image_name,
    )


def _conditions(wanted: Mapping[str, Sequence[str]]) -> Callable[[Row], bool]:
    def matches(row: Row) -> bool:
        tests: dict[str, Callable[[str], bool]] = {
            "task_type": lambda text: row.task_type == text,
            "id_contains": lambda text: text in row.id,
            "image_contains": lambda text: text in row.image,
            "image_name_starts": row.image_name.startswith,
        }
        return all(any(map(tests[name], texts)) for name, texts in wanted.items())

    return matches


BUILT_IN: tuple[Rule, ...] = tuple(_built_in())


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Reads further rules: `rules:`, a list of `{label, condition: text or texts, ...}`.

    All conditions of a rule must hold, each with any of its texts. The conditions are
    `task_type`, `id_contains`, `image_contains` and `image_name_starts`.

    Args:
        path: A YAML file.

    Returns:
        The rules in order.

    Raises:
        ValueError: There is no such file, or it has another shape.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a YAML file of rules")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        raise ValueError(f"{path} is not YAML: mend its syntax") from None
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list):
        raise ValueError(f"{path} must hold a list under `rules`")
    return tuple(_read_rule(number, rule) for number, rule in enumerate(rules, start=1))


def judge(row: Mapping[str, Any], rules: Sequence[Rule] = ()) -> Verdict:
    """Applies the rules to one row.

    Args:
        row: One object of a JSONL file.
        rules: Further rules, after the built-in ones.

    Returns:
        The label, or why there is none.
    """
    own = row.get("adapter")
    if isinstance(own, str) and own:
        return Verdict(own, "the record's own adapter", (own,))
    metadata = row.get("metadata")
    task_type = metadata.get("task_type") if isinstance(metadata, Mapping) else None
    seen = Row(
        *(
            part if isinstance(part, str) else ""
            for part in (row.get("id"), row.get("image"), task_type)
        )
    )
    matching = [rule for rule in (*BUILT_IN, *rules) if rule.matches(seen)]
    labels = tuple(dict.fromkeys(rule.label for rule in matching))
    label = labels[0] if len(labels) == 1 else None
    return Verdict(label, matching[0].name if matching else None, labels)


def label_file(source: Path, out: Path, rules: Sequence[Rule] = ()) -> Labelling:
    """Writes the rows of a JSONL file that have a label, with `adapter`; else unchanged.

    Args:
        source: The foreign records.
        out: Where to; another file.
        rules: Further rules, after the built-in ones.

    Returns:
        How many rows got which label, and which were left out.

    Raises:
        ValueError: `out` is `source`, or there is no such source.
    """
    if out.resolve() == source.resolve():
        raise ValueError(
            "out is the source, and rows without a label would be lost: choose another"
        )
    labelled: Counter[str] = Counter()
    decided: Counter[str] = Counter()
    unmatched: list[int] = []
    contradicting: dict[int, tuple[str, ...]] = {}
    refused: list[Refusal] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in iter_rows(source):
            if not isinstance(row, dict):
                refused.append(Refusal(number, "a row must be a JSON object"))
                continue
            verdict = judge(row, rules)
            if verdict.contradicts:
                contradicting[number] = verdict.labels
            elif verdict.label is None:
                unmatched.append(number)
            else:
                labelled[verdict.label] += 1
                decided[str(verdict.rule)] += 1
                yield {**row, "adapter": verdict.label}

    write_rows(out, rows())
    return Labelling(labelled, decided, tuple(unmatched), contradicting, tuple(refused))


def _read_rule(number: int, rule: object) -> Rule:
    if not (isinstance(rule, dict) and isinstance(rule.get("label"), str) and rule["label"]):
        raise ValueError(f"rule {number} must be an object with a `label`")
    conditions = {name: texts for name, texts in rule.items() if name != "label"}
    unknown = sorted(map(str, conditions.keys() - set(_CONDITIONS)))
    if unknown or not conditions:
        raise ValueError(
            f"rule {number} has the conditions {unknown}: use any of {', '.join(_CONDITIONS)}"
        )
    wanted = {name: _texts(number, name, texts) for name, texts in conditions.items()}
    return Rule(f"rule {number} of the file", rule["label"], _conditions(wanted))


def _texts(number: int, name: str, texts: object) -> list[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if isinstance(listed, list) and listed and all(isinstance(t, str) and t for t in listed):
        return listed
    raise ValueError(f"`{name}` of rule {number} must be a text or a list of texts")
