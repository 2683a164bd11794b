"""The parts in their order, with trainers and services that only say that they were asked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os

import pytest

from tests.support.feature_cache import write_calibrated
from tests.support.study import stated
from training.evaluation.runs import TrainingRun
from training.study import __main__ as command
from training.study import study as room
from training.study.kept import Kept
from training.study.measure import Bench
from training.study.report import markdown
from training.study.screens import Sets, Sizes
from training.study.study import PARTS, Plan, Study

RUN = TrainingRun(
    name="run", seed=0, gates="soft", granularity="global", entropy_weight=0.0, kl_weight=0.0,
    balance_weight=0.0, steps=2, loss=0.5, own_gate=0.5, least_marginal=0.5, held_out=None,
    entropies=((1, 0.5),),
)  # fmt: skip


LOST = ("per layer", 1)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"base")
    (tmp_path / "base" / "config.json").write_text('{"text_config": {"num_hidden_layers": 3}}')
    for name in ("calendar", "desktop"):
        folder = tmp_path / "experts" / name / "adapter"
        folder.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes(name.encode())
    sizes = Sizes(images=4, unseen=1, lessons=1, cases=1)
    return Plan(tmp_path / "base", tmp_path / "experts", tmp_path / "work", (0, 1), sizes, steps=2)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked for, in order."""
    names: list[str] = []

    def evaluate(self, name, bundle, records, cases, progress):
        names.append(f"{name} ({bundle.relative_to(tmp_path)}, {records.parent.name}, {cases})")
        part = stated() | {"cases": 2, "wilson_95": {"oracle_accuracy": [0.5, 1.0]}}
        loss = {"top1": 0.1, "soft": 0.2}
        more = {"loss": loss, "ece": 0.01, "masking": [], "pruning": [], "cases": 2}
        return stated() | more | {"experts": {"calendar": part}}

    def trained(self, *given):
        return self.out / f"{given[0]}"

    def ablated(self, name, seed, *given):
        out = self.out / f"{name}-{seed}"
        (out / "router").mkdir(parents=True, exist_ok=True)
        return out, "collapsed" if name == "from nothing" or (name, seed) == LOST else None

    @contextlib.contextmanager
    def started(*flags):
        names.append(f"executor {len(flags)}")
        yield "127.0.0.1:1"

    paths = Sets(*(tmp_path / name / "all.jsonl" for name in Sets.__annotations__))
    monkeypatch.setattr(room, "draw_sets", lambda *_: paths)
    monkeypatch.setattr(room, "executor_started", started)
    monkeypatch.setattr(room, "extract", lambda *_: {"seconds_a_record": 0.5})
    monkeypatch.setattr(
        "training.study.choices.fit",
        lambda *_: {key: {"mean": 1.0, "deviation": 0.0} for key in ("held_out", "unseen")},
    )
    monkeypatch.setattr(Bench, "evaluate", evaluate)
    monkeypatch.setattr(room.Learner, "stage1", trained)
    monkeypatch.setattr(room.Learner, "stage2", trained)

    def third(self, seed, *given):
        bundle = self.out / f"third-{seed}"
        bundle.mkdir(parents=True, exist_ok=True)
        return bundle, self.out / "experts"

    monkeypatch.setattr(room.Learner, "stage3", third)
    monkeypatch.setattr(room.Learner, "ablation", ablated)
    monkeypatch.setattr(room, "read_run", lambda out: RUN)
    return names


@contextlib.contextmanager
def hidden(title):
    yield lambda done, total: None


def test_all_the_parts(plan, asked):
    found = Study(plan, Kept(plan.work / "steps", {}), hidden).run(PARTS)
    evaluated = [name for name in asked if not name.startswith("executor")]
    assert evaluated[0] == "stage 1 seed 0 held_out (work/heads/0, held_out, None)"
    assert [name.split(" (")[0] for name in evaluated[:8]] == [
        f"{stage} seed {seed} {cases}"
        for stage in ("stage 1", "stage 2")
        for cases in ("held_out", "fresh_cases")
        for seed in (0, 1)
    ]
    assert evaluated[8:10] == [
        f"ablation plain seed {seed} held_out (work/heads/plain-{seed}/router, held_out, 12)"
        for seed in (0, 1)
    ]
    assert evaluated[-2:] == [
        f"stage 3 seed {seed} held_out (work/heads/third-{seed}, held_out, None)" for seed in (0, 1)
    ]
    # One for all bundles, and one for the experts of each run of stage 3.
    assert asked.count("executor 6") == 3
    assert [row["name"] for row in found["stages"]] == ["stage 1"] * 2 + ["stage 2"] * 2 + [
        "stage 3"
    ]
    assert all(bar["met"] for bar in found["bars"])
    ablations = {row["name"]: row for row in found["ablations"]}
    assert ablations["from nothing"]["run"] is None
    assert ablations["from nothing"]["collapsed"] == ["seed 0: collapsed", "seed 1: collapsed"]
    assert ablations["per layer"]["collapsed"] == ["seed 1: collapsed"]
    assert ablations["per layer"]["rates"]["gate"]["values"] == [1.0]
    assert "entropies" not in ablations["plain"]["run"]
    assert ablations["plain"]["rates"]["gate"]["values"] == [1.0, 1.0]
    assert found["best"]["text layer"] == "2"
    assert all(row["extraction"] == {"seconds_a_record": 0.5} for row in found["choices"])
    assert "## Bars" in markdown(json.loads(json.dumps(found)) | {"command": "x"})


def test_a_stage_3_that_collapsed_is_said_and_ends_nothing(plan, asked, monkeypatch):
    def third(lost):
        return lambda self, seed, *_: (
            plan.work if seed not in lost else plan.work / "none",
            plan.work,
        )

    def rows():
        found = Study(plan, Kept(plan.work / "steps", {}), hidden).run(["stage3"])
        return [row["name"] for row in found["stages"]]

    plan.work.mkdir()
    monkeypatch.setattr(
        Bench, "evaluate", lambda *_: stated() | {"loss": {}, "ece": None, "cases": 2}
    )
    monkeypatch.setattr(room, "_stage", lambda name, *_: {"name": name})
    monkeypatch.setattr(room.Learner, "stage3", third({1}))
    assert rows() == ["stage 3 (1 of 2 seeds collapsed)"]
    monkeypatch.setattr(room.Learner, "stage3", third({0, 1}))
    assert rows() == []


def test_one_part_alone(plan, asked, monkeypatch):
    trained = []
    monkeypatch.setattr(room.Learner, "stage1", lambda *given: trained.append(given))
    found = Study(plan, Kept(plan.work / "steps", {}), hidden).run(["choices"])
    assert asked == []
    assert found["choices"]
    assert found["bars"] == found["stages"] == found["ablations"] == []
    assert trained == []


def test_the_command_writes_three_files(plan, asked, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out" / "study.json"
    paths = ["--model", plan.model, "--experts", plan.experts, "--work", plan.work, "--json", out]
    flags = [*map(str, paths), "--seeds", "0", "--parts", "bars", "choices"]
    monkeypatch.setattr("sys.argv", ["study", *flags])
    command.main()
    stated_there = json.loads(out.read_text())
    assert stated_there["command"].startswith("python -m training.study --model")
    assert stated_there["seeds"] == [0]
    assert out.with_suffix(".md").read_text().count("\n## ") == 6
    assert out.with_suffix(".svg").read_text().startswith("<svg")
    assert "gate accuracy, held-out" in capsys.readouterr().out
    # Heads do not depend on the cases.
    monkeypatch.setattr("sys.argv", ["study", *flags, "--cases", "3"])
    command.main()
    monkeypatch.setattr("sys.argv", ["study", *flags, "--steps", "9"])
    with pytest.raises(SystemExit, match="holds a study with other steps"):
        command.main()


def test_features_are_the_same_where_their_numbers_are(plan, tmp_path):
    """Not where their records are: those may be extracted again, at another layer."""
    plan = dataclasses.replace(plan, features=tmp_path / "features")
    given = []
    for changes in ({}, {}, {"seed": 1}, {"text_layer": 9}):
        write_calibrated(plan.features, **changes)
        given.append(command._given(plan)["features"])
    assert given[0] == given[1]
    assert len(set(given)) == 3


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model", "none holds no model.safetensors: give the checkpoint of a base"),
        ("--experts", "none is no directory of experts"),
        ("--features", "none holds no whole feature cache"),
        ("--json", "none is a folder: name a file"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_drawn(
    plan, monkeypatch, tmp_path, flag, said
):
    monkeypatch.setattr(room, "draw_sets", lambda *_: pytest.fail("drawn"))
    paths = {"--model": plan.model, "--experts": plan.experts, "--work": plan.work}
    paths["--json"] = tmp_path / "study.json"
    paths[flag] = tmp_path / "none"
    if flag == "--json":
        paths[flag].mkdir()
    flags = [os.fspath(part) for pair in paths.items() for part in pair]
    monkeypatch.setattr("sys.argv", ["study", *flags])
    with pytest.raises(SystemExit, match=f"^study: .*{said}"):
        command.main()
