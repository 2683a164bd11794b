"""The heads of a study on a tiny checkpoint: where they lie, and what an ablation changes."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from router_service.bundle import load_bundle
from tests.support.tiny_run import write_features, write_tiny_run
from training.evaluation.runs import read_run
from training.head_file import load_head
from training.heads import LayeredHead
from training.marginals import GatesCollapsed
from training.study import learn
from training.study.choices import Spec
from training.study.kept import Kept
from training.study.learn import ABLATIONS, PLAIN, Learner
from training.study.screens import Sets


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    tiny = write_tiny_run(root)
    spec = Spec()
    vision = {"vision_source": spec.source, "vision_pooling": spec.vision_pooling}
    write_features(tiny, root / "features", **vision)
    sets = Sets(*[tiny.records] * 5)
    return Learner(
        tiny.base, tiny.experts, sets, root / "features", root / "heads", steps=2, batch_rows=2
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("steps"), {})


def silent(done, total):
    """Shows nothing."""


def test_every_stage_starts_from_the_one_before(learner, kept):
    first = learner.stage1(0, kept)
    second = learner.stage2(0, first, kept, silent)
    third, experts = learner.stage3(0, second, kept, silent)
    stages = [load_bundle(each).manifest for each in (first, second, third)]
    assert [each.provenance.config.get("stage") for each in stages] == [None, 2, 3]
    assert stages[0].experts == stages[1].experts != stages[2].experts
    assert sorted(path.name for path in experts.iterdir()) == ["clicker", "scroller"]
    # Done once.
    assert learner.stage2(0, first, kept, lambda *_: pytest.fail("again")) == second


def test_an_ablation_changes_one_thing(learner, kept):
    start = learner.stage1(0, kept)
    runs = {}
    for name in ("without balance", "per layer", "from nothing"):
        out, collapsed = learner.ablation(name, 0, start, kept, silent)
        assert collapsed is None
        runs[name] = read_run(out)
    assert runs["without balance"].balance_weight == 0
    assert runs["per layer"].granularity == "per layer"
    assert isinstance(load_head(learner.out / "ablations" / "per-layer-0").head, LayeredHead)
    assert runs["from nothing"].balance_weight == 0.1
    assert learner.ablation(PLAIN, 0, start, kept, silent) == (learner.out / "stage2-0", None)
    assert len(ABLATIONS) == len({str(changes) for changes in ABLATIONS.values()}) + 2


def test_a_run_whose_gates_collapse_is_an_outcome(learner, kept, monkeypatch):
    def collapse(config, progress):
        raise GatesCollapsed("the gates have collapsed by step 21")

    monkeypatch.setattr(learn, "train_stage2", collapse)
    name = "from nothing, without balance"
    for _ in range(2):
        _, collapsed = learner.ablation(name, 0, learner.stage1(0, kept), kept, silent)
        assert collapsed == "the gates have collapsed by step 21"
