"""Where experts are found, what they say of themselves, and snapshots of all of them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from executor_service.core import ExpertIdentity, GateVector
from executor_service.errors import NotLoadable
from executor_service.model.experts import (
    About,
    ExpertLocation,
    ExpertSet,
    LoadedExpert,
    Routing,
    discover_experts,
    read_about,
)
from executor_service.model.mixture import LoraWeights
from executor_service.model.targets import RowKind, Target
from service_chassis.errors import AlreadyExists, InvalidArgument, NotFound

TARGETS = {"text": Target("text", 3, 5, RowKind.TEXT, layer=0)}
CPU = torch.device("cpu")


def expert(name: str, content: str | None = None, generation: int = 1) -> LoadedExpert:
    return LoadedExpert(
        identity=ExpertIdentity(name, content or name, generation),
        label=None,
        system_prompt=None,
        task_types=(),
        rank=2,
        matched_modules=1,
        targets_vision=False,
        source=Path(name),
        weights={"text": LoraWeights(torch.randn(2, 3), torch.randn(2, 5), 1.0)},
    )


def expert_set(*names: str) -> ExpertSet:
    return ExpertSet([expert(name) for name in names], TARGETS, CPU)


# --- snapshots ----------------------------------------------------------------------------------


def test_a_set_is_sorted_and_its_digest_is_that_of_names_and_contents():
    experts = expert_set("b", "a")
    assert experts.names == ("a", "b")
    assert experts.digest == expert_set("a", "b").digest
    reloaded = ExpertSet([expert("a", generation=7), expert("b")], TARGETS, CPU)
    assert reloaded.digest == experts.digest
    renamed = ExpertSet([expert("a", content="b"), expert("b", content="a")], TARGETS, CPU)
    assert renamed.digest != experts.digest


def test_a_change_makes_another_set_and_leaves_the_old_one_as_it_was():
    old = expert_set("a", "c")
    before = old.text_updates((GateVector((1.0, 0.0)),))["text"].up.clone()
    new = old.with_expert(expert("b"))
    replaced = old.with_expert(expert("a", content="other"))
    smaller = old.without("a")
    assert (new.names, replaced.names, smaller.names) == (("a", "b", "c"), ("a", "c"), ("c",))
    assert replaced.identities[0].digest == "other"
    assert old.names == ("a", "c")
    after = old.text_updates((GateVector((1.0, 0.0)),))["text"].up
    assert torch.equal(after, before)
    assert not torch.equal(replaced.text_updates((GateVector((1.0, 0.0)),))["text"].up, before)
    with pytest.raises(NotFound):
        old.without("b")


def test_the_same_content_under_two_names_is_refused():
    with pytest.raises(AlreadyExists) as caught:
        expert_set("a").with_expert(expert("b", content="a"))
    assert (caught.value.reason, caught.value.metadata) == ("CONTENT_LOADED", {"expert": "a"})


def test_gates_of_another_number_of_experts_are_no_routing():
    with pytest.raises(ValueError, match="one gate per expert"):
        Routing(expert_set("a", "b"), (GateVector((1.0,)),))


def test_plans_of_the_same_gates_are_made_once_and_never_many():
    experts = expert_set("a", "b")
    rows = (GateVector((1.0, 0.0)), GateVector((0.0, 1.0)))
    plan = experts.text_updates(rows)
    assert experts.text_updates(tuple(dataclasses.replace(row) for row in rows)) is plan
    assert experts.text_updates(rows[::-1]) is not plan
    for step in range(200):
        experts.text_updates((GateVector((step / 256, 1 - step / 256)),))
    assert len(experts._plans) == 64
    assert experts.text_updates(rows) is not plan


# --- where they are -----------------------------------------------------------------------------


def folder(path: Path, file: str = "adapter_config.json") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / file).write_bytes(b"")
    return path


def test_experts_are_found_below_a_root_in_both_layouts(tmp_path):
    folder(tmp_path / "flat")
    folder(tmp_path / "nested" / "adapter")
    folder(tmp_path / "pickled", "adapter_model.bin")
    folder(tmp_path / "no-expert", "README.md")
    (tmp_path / "file").write_bytes(b"")
    found = discover_experts(tmp_path, {}, {})
    assert [place.name for place in found] == ["flat", "nested", "pickled"]
    assert found[0].adapter == tmp_path / "flat"
    assert found[1].adapter == tmp_path / "nested" / "adapter"


def test_a_name_given_is_stronger_than_a_variable_and_that_than_a_folder(tmp_path):
    for name in ("a", "b", "claim-window"):
        folder(tmp_path / name)
    environ = {"LORA_A": "/env/a", "LORA_B": "/env/b", "LORA_CLAIM": "/env/claim", "LORA_C": ""}
    environ |= {"LORA_CHART_SCREEN": "/env/chart", "HOME": "/env/home"}
    found = discover_experts(tmp_path, {"a": Path("/given/a")}, environ)
    assert [(place.name, str(place.directory)) for place in found] == [
        ("a", "/given/a"),
        ("b", "/env/b"),
        ("chart-screen", "/env/chart"),
        ("claim-window", "/env/claim"),
    ]


def test_a_root_that_is_no_directory_is_said(tmp_path):
    with pytest.raises(NotLoadable, match="create it or name another"):
        discover_experts(tmp_path / "missing", {}, {})


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 65, "a\n"])
def test_a_name_that_no_expert_can_have_is_refused(name):
    with pytest.raises(InvalidArgument) as caught:
        discover_experts(None, {name: Path("somewhere")}, {})
    assert caught.value.reason == "INVALID_EXPERT_NAME"


# --- what they say ------------------------------------------------------------------------------


def about(directory: Path, text: str) -> About:
    (directory / "expert.json").write_text(text)
    return read_about(ExpertLocation("a", directory))


def test_what_an_expert_says_of_itself(tmp_path):
    assert read_about(ExpertLocation("a", tmp_path)) == About()
    said = {"label": 0, "system_prompt": "Click.", "task_types": ["x", "y"], "base_digest": "d"}
    expected = About(0, "Click.", ("x", "y"), "d")
    assert about(tmp_path, json.dumps(said | {"of_tomorrow": 1})) == expected
    assert about(tmp_path, "{}") == About()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", "(file)"),
        ("[]", "(file)"),
        ("[" * 100_000, "(file)"),
        ('{"label": "1"}', "label"),
        ('{"label": true}', "label"),
        ('{"system_prompt": 1}', "system_prompt"),
        ('{"task_types": "x"}', "task_types"),
        ('{"task_types": [1]}', "task_types"),
        ('{"base_digest": []}', "base_digest"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, field):
    with pytest.raises(InvalidArgument) as caught:
        about(tmp_path, text)
    assert (caught.value.reason, caught.value.metadata) == ("BAD_EXPERT_JSON", {"field": field})
