"""Stages 2 and 3 on a tiny checkpoint: what learns, what stays, and that a stop changes nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from router_service.bundle import load_bundle
from router_service.core import Features, HeadOutput
from router_service.head import Head
from router_service.manifest import TemperatureSetting, Threshold, Thresholds
from tests.support.events import read_scalars
from tests.support.feature_cache import state_shown, write_shard
from tests.support.tiny_run import (
    EXPERTS,
    SMALL_FEATURES,
    TinyRun,
    load_experts,
    write_features,
)
from training.data.origin import image_numbers
from training.data.records import read_labelled
from training.export import export_bundle, write_manifest
from training.features import load_features
from training.head_file import load_head, save_head
from training.heads import LayeredHead, RouterHead
from training.known_screens import known_looks, read_known_screens
from training.marginals import GatesCollapsed
from training.outcome import features_for_bundle, kept_apart
from training.run_bundle import BundleFeatures, export_run
from training.run_config import RunConfig
from training.run_file import digest_of
from training.setting import prepare
from training.shown import ShownImages, shown_images
from training.stage1 import train_stage1
from training.stage1_config import Stage1Config
from training.stage2 import train_stage2
from training.stage3 import train_stage3

EXACT = {"router": {"width": 16, "dropout": 0.0, **SMALL_FEATURES}}
Train = Callable[..., Any]


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    """Everything that a run leaves, but its configuration, its state's container and its events,
    which name the time.
    """
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("run.yaml", "state.pt")
        if path.parent.name != "events"
    }


def stopping_after(last: int) -> Callable[[int, int], None]:
    def progress(done: int, _: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def features(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tiny, tmp_path_factory.mktemp("cache") / "features")


@pytest.fixture(scope="module")
def started(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head to start from: stage 2's, after one step."""
    out = tmp_path_factory.mktemp("started")
    train_stage2(tiny.config(out, steps=1, **EXACT))
    return out


# --- learning -----------------------------------------------------------------------------------


def test_the_answers_become_likelier_through_the_gates_alone(tiny: TinyRun, out: Path) -> None:
    before = {path: path.read_bytes() for path in tiny.experts.rglob("*.safetensors")}
    config = tiny.config(
        out,
        steps=12,
        save_every=12,
        batch_rows=12,
        rows_per_forward=12,
        rates={"router": 3e-3},
        weights={"entropy": 0, "balance": 0},
        **EXACT,
    )
    train_stage2(config)
    answers = [line["answer"] for line in metrics(out)]
    assert answers == sorted(answers, reverse=True)
    assert answers[0] - answers[-1] > 2e-3
    assert [line["loss"] for line in metrics(out)] == answers
    assert {path: path.read_bytes() for path in before} == before


def test_only_the_head_has_a_gradient_in_stage_2_and_the_experts_too_in_stage_3(
    tiny: TinyRun, out: Path, started: Path
) -> None:
    train_stage2(tiny.config(out / "2", start=started, steps=1, **EXACT))
    train_stage3(tiny.config(out / "3", start=started, steps=1, **EXACT))
    second, third = (
        torch.load(out / number / "state.pt", weights_only=True)["trained"] for number in "23"
    )
    assert {name.split(".")[0] for name in second} == {"router"}
    assert not any("anchor" in name for name in (*second, *third))
    groups = {name.split(".")[0] for name in third}
    assert groups == {"router", "_experts"}
    assert all(part.dtype == torch.float32 for part in third.values())


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
def test_hard_gates_teach_the_head_as_well(tiny: TinyRun, out: Path, estimator: str) -> None:
    gates = {
        "estimator": estimator,
        "temperature_start": 2.0,
        "temperature_end": 0.5,
        "temperature_shape": "linear",
    }
    train_stage2(tiny.config(out / "run", gates=gates, steps=3, **EXACT))
    train_stage2(tiny.config(out / "none", gates=gates, steps=1, **EXACT))
    later, earlier = (
        dict(load_head(out / name).head.named_parameters()) for name in ("run", "none")
    )
    assert all(not torch.equal(later[name], earlier[name]) for name in later)
    assert [line["temperature"] for line in metrics(out / "run")] == [2.0, 1.25, 0.5]
    assert load_head(out / "run").temperature == 0.5


def test_gates_per_layer(tiny: TinyRun, out: Path, started: Path) -> None:
    config = tiny.config(out, start=started, router={"per_layer": True, "dropout": 0}, steps=3)
    head = train_stage2(config).head
    assert isinstance(head.head, LayeredHead)
    assert head.shape.layers == 2
    # The first step is the head that was started from, on every layer; then they part.
    plain = tiny.config(out / "plain", start=started, router={"dropout": 0}, steps=1)
    train_stage2(plain)
    [first, *_], [same] = metrics(out), metrics(out / "plain")
    assert first["answer"] == pytest.approx(same["answer"], rel=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    weight = head.head.trunk.mix[-1].weight.view(2, 2, -1)
    assert not torch.allclose(weight[0], weight[1])
    assert isinstance(load_head(out).head, LayeredHead)


def test_a_pull_towards_the_start_keeps_the_gates_nearer(
    tiny: TinyRun, out: Path, started: Path
) -> None:
    for name, kl in (("free", 0.0), ("held", 100.0)):
        weights = {"kl": kl, "entropy": 0.5, "balance": 0}
        train_stage2(tiny.config(out / name, start=started, weights=weights, **EXACT))
    assert metrics(out / "held")[-1]["kl"] < metrics(out / "free")[-1]["kl"] / 2


@pytest.mark.parametrize("train", [train_stage2, train_stage3])
def test_tensorboard_is_told_every_step_once(
    tiny: TinyRun, out: Path, started: Path, train: Train
) -> None:
    config = tiny.config(out, start=started, save_every=2, gates={"temperature_end": 0.5}, **EXACT)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=stopping_after(3))
    train(config)
    told = read_scalars(out / "events")
    lines = metrics(out)
    for name, key in (
        ("loss/loss", "loss"),
        ("loss/answer", "answer"),
        ("loss/entropy", "entropy"),
        ("gates/temperature", "temperature"),
        ("gates/accuracy", "gate_accuracy"),
    ):
        expected = {line["step"]: pytest.approx(line[key], rel=1e-6) for line in lines}
        assert told[name] == expected, name
    assert told["marginal/clicker"][4] == pytest.approx(lines[-1]["marginals"][0], rel=1e-6)
    assert told["rate/router"][1] == pytest.approx(1e-2)
    assert ("rate/expert" in told) == (train is train_stage3)


# --- collapse -----------------------------------------------------------------------------------


@pytest.fixture
def collapsed(started: Path, tmp_path: Path) -> Path:
    """A head that gives the first expert everything."""
    saved = load_head(started)
    assert isinstance(saved.head, RouterHead)
    with torch.no_grad():
        saved.head.mix[-1].bias += torch.tensor([6.0, -6.0])
    save_head(saved, tmp_path / "collapsed")
    return tmp_path / "collapsed"


def test_the_guard_stops_a_run_and_writes_nothing_back(
    tiny: TinyRun, out: Path, collapsed: Path
) -> None:
    guard = {"collapse_below": 0.95, "patience_steps": 2}
    config = tiny.config(out, start=collapsed, guard=guard, router={}, weights={"balance": 0})
    with pytest.raises(GatesCollapsed, match=r"scroller has 50\.0% of the records"):
        train_stage3(config)
    assert not (out / "experts").exists()
    assert not (out / "head.safetensors").exists()
    # The last state is from before the step that was one too many.
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 2


def test_balance_works_only_while_the_marginals_are_collapsing(
    tiny: TinyRun, out: Path, collapsed: Path, started: Path
) -> None:
    for name, start in (("well", started), ("ill", collapsed)):
        weights = {"balance": 5.0, "balance_below": 0.98}
        rates = {"router": 0.5}
        config = tiny.config(out / name, start=start, weights=weights, rates=rates, router={})
        train_stage2(config)
    assert metrics(out / "well")[0]["balance"] == 0
    ill = metrics(out / "ill")
    assert ill[0]["balance"] > 0
    assert ill[-1]["marginals"][1] > 0.5 * 0.95**4 + 0.05  # It has come back.


def test_a_loss_that_is_no_number_ends_the_run(tiny: TinyRun, out: Path) -> None:
    config = tiny.config(out, rates={"router": 1e30}, guard={"collapse_below": 0})
    with pytest.raises(ArithmeticError, match="not finite in step"):
        train_stage2(config)


# --- the same run -------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("train", [train_stage2, train_stage3])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tiny: TinyRun, out: Path, started: Path, train: Train, last: int
) -> None:
    def config(name: str) -> RunConfig:
        return tiny.config(
            out / name,
            start=started,
            router={"dropout": 0.3},
            gates={"estimator": "gumbel", "temperature_end": 0.3},
            weights={"kl": 0.1},
            rates={"router": 1e-2, "joint_expert": 1e-3, "warmup_steps": 3},
        )

    train(config("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config("stopped"), progress=stopping_after(last))
    assert not (out / "stopped" / "head.safetensors").exists()
    train(config("stopped"))
    assert files(out / "whole") == files(out / "stopped")
    whole, stopped = (
        torch.load(out / name / "state.pt", weights_only=True) for name in ("whole", "stopped")
    )
    assert whole["step"] == stopped["step"] == 4
    for name, part in whole["trained"].items():
        assert torch.equal(part, stopped["trained"][name])
    for at, moments in whole["optimiser"]["state"].items():
        for name, part in moments.items():
            assert torch.equal(part, stopped["optimiser"]["state"][at][name])


def test_a_stop_between_two_states_repeats_what_was_not_kept(tiny: TinyRun, out: Path) -> None:
    train_stage2(tiny.config(out / "whole", save_every=2))
    with pytest.raises(KeyboardInterrupt):
        train_stage2(tiny.config(out / "stopped", save_every=2), progress=stopping_after(3))
    train_stage2(tiny.config(out / "stopped", save_every=2))
    assert files(out / "whole") == files(out / "stopped")


def test_a_run_is_repeated_from_what_it_saved(tiny: TinyRun, out: Path) -> None:
    train_stage2(tiny.config(out / "one", steps=2))
    flags = ["--config", str(out / "one" / "run.yaml"), "--out", str(out / "two")]
    train_stage2(RunConfig.read(flags, "molora train stage2"))
    assert files(out / "one") == files(out / "two")


def test_another_configuration_does_not_go_on_in_the_same_folder(tiny: TinyRun, out: Path) -> None:
    train_stage2(tiny.config(out, steps=1))
    with pytest.raises(ValueError, match=r"holds another run, with other rates\.router, seed"):
        train_stage2(tiny.config(out, steps=1, seed=1, rates={"router": 1, "joint_expert": 1e-3}))


def test_a_run_does_not_go_on_with_other_records(tiny: TinyRun, out: Path) -> None:
    mine = tiny.records.parent / "mine.jsonl"
    lines = tiny.records.read_text().splitlines(keepends=True)
    mine.write_text("".join(lines))
    train_stage2(tiny.config(out, records=mine, steps=1))
    mine.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="records changed since the run in"):
        train_stage2(tiny.config(out, records=mine, steps=1))


def test_a_start_that_was_fitted_again_is_the_same_head(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path
) -> None:
    """Thresholds are the router's; a run takes weights, temperature and what was shown."""
    first = train_stage1(features, config=Stage1Config(max_epochs=2), progress=False)
    start = export_bundle(first, tmp_path / "first")
    config = tiny.config(out, start=start, router={})
    with pytest.raises(KeyboardInterrupt):
        train_stage2(config, progress=stopping_after(2))
    manifest, never = load_bundle(start).manifest, Threshold(None, "fitted", "too few")
    fitted = dataclasses.replace(manifest, thresholds=Thresholds(never, never, never))
    write_manifest(fitted, start)
    train_stage2(config)
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]
    warm = dataclasses.replace(fitted, temperature=TemperatureSetting(9.0, "typed"))
    write_manifest(warm, start)
    with pytest.raises(ValueError, match="start changed since the run"):
        train_stage2(config)
    write_manifest(fitted, start)
    state_shown(start, ShownImages.of({"train": [1]}))
    with pytest.raises(ValueError, match="start changed since the run"):
        train_stage2(config)


def test_forwards_of_one_step_add_up_to_one_forward(tiny: TinyRun, out: Path) -> None:
    for rows in (1, 4):
        config = tiny.config(out / str(rows), steps=2, batch_rows=4, rows_per_forward=rows, **EXACT)
        train_stage2(config)
    assert_alike(out / "1", out / "4")


@pytest.mark.parametrize("train", [train_stage2, train_stage3])
def test_recomputed_layers_learn_the_same(tiny: TinyRun, out: Path, train: Train) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        config = tiny.config(out / name, steps=2, gradient_checkpointing=recompute, **EXACT)
        train(config)
    assert_alike(out / "kept", out / "again")


def test_mixed_precision_trains_in_float32(tiny: TinyRun, out: Path) -> None:
    for name, precision in (("full", "no"), ("mixed", "bf16")):
        AcceleratorState._reset_state(True)
        train_stage3(tiny.config(out / name, steps=2, mixed_precision=precision, **EXACT))
    for full, mixed in zip(metrics(out / "full"), metrics(out / "mixed"), strict=True):
        assert mixed["answer"] == pytest.approx(full["answer"], rel=0.02)
        assert mixed["answer"] != full["answer"]
    state = torch.load(out / "mixed" / "state.pt", weights_only=True)["trained"]
    assert {part.dtype for part in state.values()} == {torch.float32}


def test_a_base_in_half_precision(tiny: TinyRun, out: Path) -> None:
    train_stage3(tiny.config(out, steps=2, dtype="bfloat16", **EXACT))
    for name in EXPERTS:
        weights = load_file(out / "experts" / name / "adapter" / "adapter_model.safetensors")
        assert {part.dtype for part in weights.values()} == {torch.float32}


def assert_alike(one: Path, other: Path) -> None:
    for first, second in zip(metrics(one), metrics(other), strict=True):
        for name in ("answer", "entropy", "marginals", "own_gate"):
            assert second[name] == pytest.approx(first[name], rel=1e-4)
    left, right = load_head(one).head.state_dict(), load_head(other).head.state_dict()
    for name, part in left.items():
        assert torch.allclose(part, right[name], atol=1e-4)


# --- what is left behind ------------------------------------------------------------------------


def test_with_features_a_bundle_is_left_that_states_the_run(
    tiny: TinyRun, out: Path, features: Path, started: Path
) -> None:
    outcome = train_stage2(tiny.config(out, features=features, start=started, steps=2, router={}))
    assert outcome.bundle == out / "router"
    manifest = load_bundle(out / "router").manifest
    stated = manifest.provenance.config
    assert (stated["stage"], stated["steps"], stated["gates.estimator"]) == (2, 2, "soft")
    assert not any(str(tiny.base.parent) in str(value) for value in stated.values())
    assert set(outcome.accuracy) == {"train", "validation", "held_out"}
    assert set(outcome.cases) == set(outcome.accuracy)
    # Stage 3 can start from it, as from stage 1's.
    again = load_head(out / "router")
    assert again.shape == outcome.head.shape
    for name, part in outcome.head.head.state_dict().items():
        assert torch.equal(part, again.head.state_dict()[name])


def test_what_the_router_is_to_know_may_have_a_cache_of_its_own(
    tiny: TinyRun, out: Path, features: Path, started: Path, tmp_path: Path
) -> None:
    shard = load_file(features / "shard-00000.safetensors")
    index = load_features(features).index
    looks = {**shard, "vision": shard["vision"] + 1, "image": shard["image"] + 1000}
    known = write_shard(tmp_path, looks, index.feature_spec, index.experts, "d" * 64)
    train_stage2(
        tiny.config(out, features=features, known=known, start=started, steps=1, router={})
    )
    found = read_known_screens(load_bundle(out / "router").head)
    assert found is not None
    expected = known_looks(known, index, ShownImages.of({}))
    assert torch.allclose(found.mean, expected.screens.mean)
    assert load_bundle(out / "router").manifest.provenance.known_digest == "d" * 64
    assert shown_images(out / "router").taught(looks["image"]).all()


def test_a_cache_stays_split_as_it_was_for_the_head_that_is_started_from(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path
) -> None:
    config = Stage1Config(seed=3, max_epochs=2, validation_share=0.25, held_out_share=0.3)
    first = train_stage1(features, config=config, progress=False)
    export_bundle(first, tmp_path / "first")
    outcome = train_stage2(
        tiny.config(out, features=features, start=tmp_path / "first", steps=1, seed=4, router={})
    )
    assert outcome.bundle is not None
    second = load_bundle(outcome.bundle).manifest.provenance
    assert (second.cases, second.seed) == (first.cases, 4)
    # And so for what is started from that one; with a bundle's folder or with its run's.
    for start in (out, outcome.bundle):
        config = tiny.config(
            tmp_path / f"after-{start.name}",
            features=features,
            start=start,
            steps=1,
            seed=5,
            router={},
        )
        third = features_for_bundle(prepare(config))
        assert third is not None
        assert third.shown().to_bytes() == first.shown.to_bytes()


def test_what_an_earlier_stage_has_learnt_from_measures_no_later_one(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path
) -> None:
    """Over a run without features or a bundle, whose start is gone, and whose seed is another."""
    first = train_stage1(features, config=Stage1Config(seed=3, max_epochs=2), progress=False)
    export_bundle(first, tmp_path / "first")
    train_stage2(tiny.config(out, start=tmp_path / "first", steps=1, seed=1, router={}))
    shutil.rmtree(tmp_path / "first")
    later = tiny.config(
        tmp_path / "later", features=features, start=out, steps=1, seed=2, router={}
    )
    outcome = train_stage3(later)
    assert outcome.bundle is not None
    shown, numbers = shown_images(outcome.bundle), image_numbers_of(tiny)
    assert shown.taught(numbers).all()
    for image, split in zip(first.shown.image, first.shown.split, strict=True):
        assert shown.splits_of(image[None]) == split


def image_numbers_of(tiny: TinyRun) -> torch.Tensor:
    return torch.tensor(image_numbers(read_labelled(tiny.records), tiny.records.parent))


def test_what_the_bundle_is_measured_on_is_not_learnt_from(
    tiny: TinyRun,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The records' own cache, with the numbers that its images have in one."""
    numbers = image_numbers_of(tiny)
    table = load_features(features)
    columns = {name: getattr(table, name) for name in ("text", "vision", "label", "source")}
    spec, experts = table.index.feature_spec, table.index.experts
    cache = write_shard(tmp_path / "c", columns | {"image": numbers}, spec, experts, "d" * 64)
    config = tiny.config(tmp_path / "run", features=cache, steps=1, **EXACT)
    setting = prepare(config)
    bundle = features_for_bundle(setting)
    apart = kept_apart(setting, bundle)
    assert bundle is not None
    left = sum(number in bundle.measured() for number in numbers.tolist())
    assert 0 < left < len(numbers)
    assert (apart.left_out, len(apart.rows)) == (left, len(numbers) - left)
    assert train_stage2(config).left_out == left
    assert kept_apart(setting, None).left_out == 0
    monkeypatch.setattr(BundleFeatures, "measured", lambda self: set(numbers.tolist()))
    with pytest.raises(ValueError, match="give features of others"):
        kept_apart(setting, bundle)


def test_a_run_without_features_is_exported_later(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had had them, where it learns from all its records either way."""
    given = tiny.config(tmp_path / "given", features=features, steps=2, seed=4, **EXACT)
    bundle = train_stage2(given).bundle
    assert bundle is not None
    train_stage2(tiny.config(out, steps=2, seed=4, **EXACT))
    result = export_run(out, tmp_path / "late", features)
    assert set(result.accuracy) == {"train", "validation", "held_out"}
    for name in ("router.onnx", "router.json"):
        assert (tmp_path / "late" / name).read_bytes() == (bundle / name).read_bytes()
    with pytest.raises(ValueError, match="is a bundle already"):
        export_run(bundle, tmp_path / "none", features)
    monkeypatch.setenv("MOLORA_TRAIN_SEED", "5")
    with pytest.raises(ValueError, match="another run, with other seed"):
        export_run(out, tmp_path / "none", features)
    monkeypatch.delenv("MOLORA_TRAIN_SEED")
    saved = load_head(out)
    learnt = ShownImages.of({"train": load_features(features).image})
    save_head(dataclasses.replace(saved, shown=learnt), out)
    with pytest.raises(ValueError, match="is left for validation: the head that is started from"):
        export_run(out, tmp_path / "none", features)
    assert not (tmp_path / "none").exists()


def test_a_later_export_states_the_records_that_the_run_began_with(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path
) -> None:
    """Whatever their file holds by then; and nothing is written where nobody knows."""
    mine = tmp_path / "mine.jsonl"
    shutil.copy(tiny.records, mine)
    began = digest_of(mine)
    train_stage2(tiny.config(out, records=mine, images_root=tiny.records.parent, steps=1))
    mine.write_text("".join(mine.read_text().splitlines(keepends=True)[1:]))
    for name in ("changed", "deleted"):
        export_run(out, tmp_path / name, features)
        stated = load_bundle(tmp_path / name).manifest.provenance.config
        assert (stated["stage"], stated["records"]) == (2, began)
        mine.unlink(missing_ok=True)
    (out / "inputs.json").unlink()
    with pytest.raises(ValueError, match=r"inputs\.json cannot be read"):
        export_run(out, tmp_path / "none", features)
    assert not (tmp_path / "none").exists()


def test_a_later_export_is_for_the_experts_that_the_run_mixed(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path
) -> None:
    """Whichever those are that the cache was extracted beside."""
    experts = tmp_path / "experts"
    shutil.copytree(tiny.experts, experts)
    train_stage2(tiny.config(out, experts_root=experts, steps=1))
    learnt = train_stage3(tiny.config(tmp_path / "learnt", steps=1))
    for name, directory in learnt.experts.items():
        shutil.copytree(directory, experts / name, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="the experts have changed since the run mixed them"):
        export_run(out, tmp_path / "none", features)
    shutil.rmtree(experts / "clicker")
    with pytest.raises(ValueError, match="clicker is not in"):
        export_run(out, tmp_path / "none", features)
    export_run(tmp_path / "learnt", tmp_path / "late", features)
    cached = load_features(features).index.experts
    found = load_bundle(tmp_path / "late").manifest
    assert [each.name for each in found.experts] == [each.name for each in cached]
    assert not {each.digest for each in found.experts} & {each.digest for each in cached}


def test_gates_per_layer_have_a_bundle_too(
    tiny: TinyRun, out: Path, features: Path, started: Path
) -> None:
    config = tiny.config(out, features=features, start=started, steps=3, router={"per_layer": True})
    outcome = train_stage2(config)
    bundle = load_bundle(out / "router")
    assert bundle.manifest.layers == 2
    again = load_head(out / "router")
    assert again.shape == outcome.head.shape
    table = load_features(features)
    with torch.inference_mode():
        logits = outcome.head.head(table.text, table.vision)
    head = Head(bundle.head, bundle.manifest)
    for row in range(3):
        text, vision = table.text[row].numpy(), table.vision[row].numpy()
        (judged,) = head.judge([Features(text, vision, "", "", "", "")])
        assert isinstance(judged, HeadOutput)
        assert judged.layers == pytest.approx(logits[row].numpy(), abs=1e-5)
        assert judged.logits == pytest.approx(logits[row].mean(dim=0).numpy(), abs=1e-5)
    # A later run goes on from it.
    more = tiny.config(out / "on", start=out / "router", steps=1, router={"per_layer": True})
    assert prepare(more).head.shape.layers == 2


def test_stage_2_starts_from_stage_1s_bundle(
    tiny: TinyRun, out: Path, features: Path, tmp_path: Path
) -> None:
    result = train_stage1(
        features, config=Stage1Config(width=24, max_epochs=2, dropout=0.2), progress=False
    )
    export_bundle(result, tmp_path / "bundle")
    setting = prepare(tiny.config(out, start=tmp_path / "bundle", router={}))
    assert setting.config.router.width == 24
    assert setting.config.router.dropout == pytest.approx(0.2)
    assert setting.config.router.text_layer == 2
    assert setting.anchor is not None
    assert setting.anchor.temperature == result.temperature
    for name, part in result.head.state_dict().items():
        assert torch.equal(part, setting.head.head.state_dict()[name])


def test_stage_3s_bundle_is_for_the_experts_that_it_wrote(
    tiny: TinyRun, out: Path, features: Path, started: Path
) -> None:
    from executor_service.model.gated import GatedModel

    config = tiny.config(out, features=features, start=started, steps=1, router={})
    outcome = train_stage3(config)
    model = GatedModel.load(tiny.base, device="cpu", dtype=torch.float32)
    learnt = load_experts(model, outcome.experts)
    manifest = load_bundle(out / "router").manifest
    assert [entry.digest for entry in manifest.experts] == [
        made.digest for made in learnt.identities
    ]
    assert [entry.label for entry in manifest.experts] == [5, 5]
    assert manifest.provenance.expert_set == learnt.digest
    before = load_experts(model, {name: tiny.experts / name for name in EXPERTS})
    assert learnt.digest != before.digest


# --- what does not belong together --------------------------------------------------------------


def test_a_head_for_other_experts(tiny: TinyRun, out: Path, started: Path) -> None:
    config = tiny.config(out, start=started, adapters=("clicker",), router={})
    with pytest.raises(ValueError, match="knows clicker, scroller, the run mixes clicker"):
        train_stage2(config)


def test_another_router_than_the_heads(tiny: TinyRun, out: Path, started: Path) -> None:
    with pytest.raises(ValueError, match=r"router\.text_layer is 1, but that of the head"):
        train_stage2(tiny.config(out, start=started, router={"text_layer": 1}))
    assert not out.exists()


def test_an_adapter_that_nobody_has(tiny: TinyRun, out: Path) -> None:
    with pytest.raises(ValueError, match="no expert is called ledger"):
        train_stage2(tiny.config(out, adapters=("ledger",)))


def test_an_expert_from_the_environment(
    tiny: TinyRun, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_CLICKER", str(tiny.experts / "clicker"))
    monkeypatch.setenv("LORA_SCROLLER", str(tiny.experts / "scroller"))
    config = prepare(tiny.config(out, experts_root=None)).config
    assert config.lora_modules == {name: tiny.experts / name for name in EXPERTS}


def test_features_of_another_head(tiny: TinyRun, out: Path, features: Path) -> None:
    config = tiny.config(out / "a", features=features, router={"text_layer": 1, "width": 16})
    with pytest.raises(ValueError, match="not what the router reads"):
        train_stage2(config)


def test_a_head_of_another_base(tiny: TinyRun, out: Path, started: Path, tmp_path: Path) -> None:
    saved = load_head(started)
    spec = dataclasses.replace(saved.shape.feature_spec, base_digest="0" * 64)
    other = dataclasses.replace(saved, shape=dataclasses.replace(saved.shape, feature_spec=spec))
    save_head(other, tmp_path / "other")
    with pytest.raises(ValueError, match="features of another base"):
        train_stage2(tiny.config(out, start=tmp_path / "other", router={}))
