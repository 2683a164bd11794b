"""The Dockerfile as a test reads it: the instructions of each stage."""

from __future__ import annotations

import re

from tests.support.wheels import ROOT

# What pip says where it reaches no index.
NO_INDEX = ("No matching distribution", "Could not find a version", "ConnectionError")


def read_stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions (name, rest) of each stage, with those of the stages below it."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            below, _, name = rest.partition(" AS ")
            stages[name] = list(stages.get(below, []))
        else:
            stages[name].append((instruction, " ".join(rest.split())))
    return stages


STAGES = read_stages()


def last(target: str, instruction: str) -> str:
    """What the image of a target has of an instruction that only counts once."""
    return [rest for name, rest in STAGES[target] if name == instruction][-1]
