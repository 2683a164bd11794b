"""The user's test files and their quirks, read as records; knows no scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.data.calls import COMPUTER_USE, ToolCall, call_from_json
from training.data.records import IMAGE_MARK, Record, RecordFile, collect, new_record


def read_tests(path: Path) -> RecordFile:
    """Reads a `test.json`: cases become records of the new form.

    Args:
        path: The file, an array of cases.

    Returns:
        One record a case; its calls are `expected_action` and `additional_tool_calls`, its
        tolerance is in the metadata. Cases that were refused are counted from 1.

    Raises:
        ValueError: There is no such file, or it is no array.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a test.json")
    try:
        cases = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON: give an array of cases") from None
    if not isinstance(cases, list):
        raise ValueError(f"{path} is no array: give an array of cases")
    return collect(enumerate(cases, start=1), _record_from_case)


def _record_from_case(case: object) -> Record:
    if not isinstance(case, dict):
        raise ValueError("a case must be a JSON object")
    test_id, image, prompt = (case.get(name) for name in ("test_id", "screenshot", "prompt"))
    if not (isinstance(test_id, str | int) and isinstance(image, str) and isinstance(prompt, str)):
        raise ValueError("`test_id`, `screenshot` and `prompt` must be texts")
    if not isinstance(case.get("metadata"), dict | None):
        raise ValueError("`metadata` must be an object")
    metadata = dict(case.get("metadata") or {})
    further = metadata.pop("additional_tool_calls", None) or []
    if not isinstance(further, list):
        raise ValueError("`additional_tool_calls` must be a list")
    calls = [_expected_call(value) for value in (case.get("expected_action"), *further)]
    if case.get("tolerance") is not None:
        metadata["tolerance"] = case["tolerance"]
    record = new_record(str(test_id), image, prompt.removeprefix(IMAGE_MARK), calls, metadata)
    adapter = case.get("adapter")
    return record.labelled(adapter) if isinstance(adapter, str) else record


def _expected_call(value: object) -> ToolCall:
    """A call of a test file: with or without the tool's name around, and with its odd names."""
    if isinstance(value, dict) and "arguments" not in value and "action" in value:
        value = {"name": COMPUTER_USE, "arguments": value}
    call = call_from_json(value)
    arguments = dict(call.arguments)
    if "duration" in arguments and "time" not in arguments:
        arguments["time"] = arguments.pop("duration")
    if isinstance(arguments.get("regions"), list):
        arguments["regions"] = [_with_label(region) for region in arguments["regions"]]
    return ToolCall(call.name, _with_label(arguments))


def _with_label(region: Any) -> Any:
    if isinstance(region, dict) and "element" in region and "label" not in region:
        region = dict(region)
        region["label"] = region.pop("element")
    return region
