"""Training runs, read from the files that they leave."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support import router_bundle
from training.evaluation.runs import read_run
from training.joint import LOG_FILE
from training.run_bundle import BUNDLE_FOLDER
from training.run_config import RunConfig


def write_run(folder, *, steps=20, **chosen):
    RunConfig(model="base", records="records.jsonl", out=folder, **chosen).save()
    lines = [
        {
            "step": step, "temperature": 1.0, "loss": 2.0, "answer": 3.0 - step / 10,
            "entropy": 1 - step / steps, "kl": 0.0, "balance": 0.0, "own_gate": step / steps,
            "marginals": [0.7, 0.3],
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (folder / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_says_what_was_chosen_and_how_it_ended(tmp_path):
    run = read_run(write_run(tmp_path / "plain"))
    assert (run.name, run.seed, run.gates, run.granularity) == ("plain", 0, "soft", "global")
    assert (run.entropy_weight, run.kl_weight, run.balance_weight) == (0.01, 0.0, 0.1)
    assert run.steps == 20
    assert run.loss == pytest.approx(3.0 - 1.95), "the mean of the last two steps"
    assert run.own_gate == pytest.approx(0.975)
    assert run.least_marginal == 0.3
    assert run.held_out is None
    assert run.entropies[0] == (1, 0.95)
    assert len(run.entropies) == 20


def test_an_ablation_is_told_apart(tmp_path):
    chosen = {
        "router": {"per_layer": True},
        "gates": {"estimator": "gumbel", "top_k": 2},
        "weights": {"kl": 0.5, "entropy": 0.0},
        "start": Path("s"),
    }
    run = read_run(write_run(tmp_path / "r", steps=3, **chosen))
    assert (run.granularity, run.gates) == ("per layer", "top-2 gumbel")
    assert (run.kl_weight, run.entropy_weight) == (0.5, 0.0)


def test_its_bundle_says_how_good_the_head_is(tmp_path):
    folder = write_run(tmp_path / "r", steps=1)
    model = router_bundle.head_model().SerializeToString()
    stated = router_bundle.manifest(model)
    proven = dataclasses.replace(stated.provenance, accuracy={"train": 1.0, "held_out": 0.75})
    stated = dataclasses.replace(stated, provenance=proven)
    router_bundle.write_bundle(folder / BUNDLE_FOLDER, model, router_bundle.as_json(stated))
    assert read_run(folder).held_out == 0.75


@pytest.mark.parametrize("broken", ["run.yaml", LOG_FILE])
def test_half_a_run_is_refused(tmp_path, broken):
    folder = write_run(tmp_path / "r", steps=1)
    for content in ("", "{", "[]\n"):
        (folder / broken).write_text(content)
        with pytest.raises(ValueError, match="is no run of stage 2 or 3"):
            read_run(folder)
    with pytest.raises(ValueError, match="is no run"):
        read_run(tmp_path)
