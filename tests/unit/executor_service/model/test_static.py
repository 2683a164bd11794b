"""Decode in static shapes against the eager step, on a CPU: the same function, not captured."""

import gc
from dataclasses import replace

import pytest
import torch

from executor_service import server
from executor_service.core import GateVector
from executor_service.errors import NotLoadable
from executor_service.model import static
from executor_service.model.experts import ExpertSet
from executor_service.model.gated import DecodeRow, GatedModel, Routing
from executor_service.model.slots import SlotCache
from executor_service.model.static import Shape
from executor_service.settings import ExecutorSettings
from tests.unit.executor_service.model import tiny
from tests.unit.executor_service.model.tiny import AdapterRecipe

TOLERANCE = 1e-5
VISIBLE = 1000 * TOLERANCE
SLOTS, LENGTH = 5, 40
# Ranks that differ, and modules that not all of them adapt: several layouts of a stack.
RECIPES = {
    "a": AdapterRecipe(rank=4, seed=1),
    "b": AdapterRecipe(rank=2, vision=(), seed=2),
    "c": AdapterRecipe(rank=3, llm=("q_proj", "down_proj"), rslora=True, seed=3),
}
SOFT = GateVector((0.5, 0.25, 0.25))
ONE_HOT = GateVector.one_hot(3, 1)
ZERO = GateVector.zeros(3)


class Pair:
    """One model with two slot caches that are always filled alike."""

    def __init__(self, model: GatedModel, experts: ExpertSet) -> None:
        self.model, self.experts = model, experts
        self.eager = model.slot_cache(slots=SLOTS, length=LENGTH)
        self.static = model.slot_cache(slots=SLOTS, length=LENGTH, decode="static")

    def prefill(self, slot: int, tokens: int, gates: GateVector, experts=None) -> DecodeRow:
        """The row that decodes behind a prompt of so many tokens."""
        routing = Routing(experts or self.experts, (gates,))
        [vision] = self.model.encode_vision([tiny.screen(2, 2, seed=slot)], routing)
        prompt = tiny.prompt(4, [7 + at % 50 for at in range(tokens - 8)])
        row = self.model.row(prompt, vision)
        for slots in (self.eager, self.static):
            self.model.prefill(row, (0, tokens), slots, slot, routing)
        position = int(row.positions[1:].max()) + 1
        return DecodeRow(40 + slot, slot, tokens, position, gates)

    def decode(self, rows: list[DecodeRow], experts=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of both; the eager ones come second."""
        experts = experts or self.experts
        ours = self.model.decode(rows, self.static, experts)
        return ours, self.model.decode(rows, self.eager, experts)

    def check(self, rows: list[DecodeRow], experts=None) -> torch.Tensor:
        """They are alike, row by row, and so is what is kept."""
        ours, theirs = self.decode(rows, experts)
        assert ours.shape == theirs.shape == (len(rows), tiny.VOCABULARY)
        for mine, wanted in zip(ours, theirs, strict=True):
            assert tiny.relative_error(mine, wanted) <= TOLERANCE
        for mine, wanted in zip(usable(self.static), usable(self.eager), strict=True):
            assert tiny.relative_error(mine, wanted) <= TOLERANCE
        return ours


def usable(slots: SlotCache) -> list[torch.Tensor]:
    return [part[:, :, : slots.length] for part in (*slots.keys, *slots.values)]


def later(row: DecodeRow) -> DecodeRow:
    return replace(row, token_id=row.token_id + 1, length=row.length + 1, position=row.position + 1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> tuple[GatedModel, ExpertSet]:
    model = tiny.tiny_model()
    root = tmp_path_factory.mktemp("experts")
    return model, tiny.load_set(model, tiny.write_experts(root, RECIPES))


@pytest.fixture
def pair(loaded, monkeypatch) -> Pair:
    # Small enough that a test's answers grow from one into the next.
    monkeypatch.setattr(static, "KEY_BUCKET", 16)
    return Pair(*loaded)


def test_mixed_rows_in_any_order_with_gaps(pair):
    rows = [pair.prefill(4, 11, SOFT), pair.prefill(0, 20, ZERO), pair.prefill(2, 9, ONE_HOT)]
    logits = pair.check(rows)
    # The comparison has teeth: under the bare base every row but the zero one is another.
    bare = pair.model.decode([replace(row, gates=ZERO) for row in rows], pair.eager, pair.experts)
    errors = [tiny.relative_error(*both) for both in zip(bare, logits, strict=True)]
    assert errors[1] <= TOLERANCE
    assert min(errors[0], errors[2]) > VISIBLE


@pytest.mark.parametrize("gates", [SOFT, ONE_HOT, ZERO])
def test_a_row_alone(pair, gates):
    pair.check([pair.prefill(0, 12, gates)])


def test_an_answer_grows_through_the_buckets_to_the_end_of_its_slot(pair):
    rows = [pair.prefill(1, 14, SOFT), pair.prefill(3, 10, ONE_HOT)]
    shapes = []
    while rows[0].length < LENGTH:
        shapes.append(Shape.of(rows, pair.static))
        pair.check(rows)
        rows = [later(row) for row in rows]
    assert list(dict.fromkeys(shapes)) == [Shape(4, 16), Shape(4, 32), Shape(4, LENGTH)]


@pytest.mark.parametrize(("slot", "rows"), [(0, 1), (1, 2), (2, 4), (3, 4), (4, 5)])
def test_only_the_lowest_slots_run(pair, slot, rows):
    row = DecodeRow(1, slot, 15, 15, ZERO)
    assert Shape.of([row], pair.static) == Shape(rows, 16)
    assert Shape.of([replace(row, length=16)], pair.static) == Shape(rows, 32)


def test_answers_come_and_go_between_steps(pair):
    first, second = pair.prefill(0, 12, SOFT), pair.prefill(3, 17, ONE_HOT)
    pair.check([first, second])
    third = pair.prefill(1, 9, ZERO)
    pair.check([third, later(first)])
    # A slot is taken over by a shorter answer: what is left of the longer one is not seen.
    pair.check([pair.prefill(3, 9, SOFT), later(third)])


def test_a_slot_in_a_gap_keeps_what_is_being_prefilled(pair):
    row, other = pair.prefill(0, 12, SOFT), pair.prefill(2, 12, ONE_HOT)
    pair.prefill(1, 13, SOFT)  # Mid-prefill: it does not step.
    before = [part[1].clone() for part in usable(pair.static)]
    pair.check([row, other])
    after = [part[1] for part in usable(pair.static)]
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))
    untouched = [part[3:].any() for part in usable(pair.static)]
    assert not any(untouched)
    assert pair.static.keys[0][1, :, LENGTH].any(), "its row did run, and kept where none looks"


def test_what_is_not_a_number_in_the_spare_position_reaches_nobody(pair):
    rows = [pair.prefill(1, LENGTH - 1, SOFT)]
    for part in (*pair.static.keys, *pair.static.values):
        part[:, :, LENGTH] = float("nan")
    pair.check(rows)


def test_two_snapshots_in_turns(pair):
    fewer = pair.experts.without("a")
    rows = [pair.prefill(0, 12, SOFT)]
    others = [pair.prefill(2, 12, GateVector((0.75, 0.25)), fewer)]
    for _ in range(2):
        mine, theirs = pair.check(rows), pair.check(others, fewer)
        assert tiny.relative_error(mine, theirs) > VISIBLE
        rows, others = [later(row) for row in rows], [later(row) for row in others]


def test_without_any_expert(pair):
    nobody = pair.model.expert_set()
    pair.check([pair.prefill(1, 12, GateVector(()), nobody)], nobody)


def test_gates_per_layer_run_eagerly(pair, monkeypatch):
    monkeypatch.setattr(static.StaticDecoder, "decode", None)
    layered = GateVector(SOFT.weights, (ONE_HOT.weights, ZERO.weights, SOFT.weights))
    ours, theirs = pair.decode([pair.prefill(1, 12, layered)])
    assert torch.equal(ours, theirs)


def test_nothing_is_left_on_the_model(pair):
    pair.check([pair.prefill(0, 12, SOFT)])
    assert not pair.model.state.updates


def test_a_full_slot_is_refused_before_it_is_written(pair):
    row = DecodeRow(1, 0, LENGTH, LENGTH, SOFT)
    for slots in (pair.static, pair.eager):
        with pytest.raises(AssertionError, match="fits into its slot"):
            pair.model.decode([row], slots, pair.experts)


def test_logits_are_the_callers_own(pair):
    rows = [pair.prefill(0, 12, SOFT)]
    first = pair.check(rows)
    kept = first.clone()
    pair.check([later(row) for row in rows])
    assert torch.equal(first, kept)


def test_what_is_captured_looks_at_no_value(pair):
    """On the meta device, where there are none: to branch on one, or to copy it, raises."""
    base = tiny.tiny_base().to("meta")
    model = GatedModel(base, tokenizer=None, base_digest="0" * 64)
    experts = model.expert_set(pair.experts.experts)
    slots = model.slot_cache(slots=SLOTS, length=LENGTH, decode="static")
    shape = Shape(4, 32)
    step = static.StepInput(shape, 3, slots.device)
    with torch.no_grad():
        logits = model._static[slots]._run(step, slots, experts, shape)
    assert (logits.shape, logits.dtype) == ((4, tiny.VOCABULARY), torch.float32)
    with pytest.raises(RuntimeError, match="meta"):
        model.decode([DecodeRow(1, 0, 9, 9, SOFT)], slots, experts)[0, 0].item()


class FakeGraph:
    """Replays by running again what was captured, on the tensors that it was captured with."""

    running = None

    def pool(self):
        return self

    def replay(self):
        self.logits.copy_(self.again())


class Capture:
    """In the place of `torch.cuda.graph`: what runs inside gives nothing but its addresses."""

    def __init__(self, graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"

    def __enter__(self):
        FakeGraph.running = self

    def __exit__(self, *_error):
        FakeGraph.running = None


@pytest.fixture
def graphs(pair, monkeypatch):
    """The graphs of a decoder that captures, the device's part of it replaced."""

    class Stream:
        def wait_stream(self, _other):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_error):
            pass

    monkeypatch.setattr(static, "_stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    captured = static.StaticDecoder._captured

    def capture(self, step, slots, experts, shape, stream):
        graph = captured(self, step, slots, experts, shape, stream)
        graph.graph.logits = graph.logits.fill_(float("nan"))
        held = static.weakref.ref(experts)
        graph.graph.again = lambda: self._run(step, slots, held(), shape)
        return graph

    monkeypatch.setattr(static.StaticDecoder, "_captured", capture)
    pair.static = pair.model.slot_cache(slots=SLOTS, length=LENGTH, decode="cuda_graph")
    return pair.model._static[pair.static]._graphs


def test_a_graph_is_captured_once_and_refilled(pair, graphs):
    """What a replay reads is what it was captured with: stale rows or gates would show."""
    rows = [pair.prefill(0, 9, SOFT), pair.prefill(2, 10, ONE_HOT)]
    for step in range(4):
        pair.check(rows[: 1 + step % 2])
        rows = [later(row) if at <= step % 2 else row for at, row in enumerate(rows)]
    assert [shape for _, shape in graphs] == [Shape(1, 16), Shape(4, 16)]


def test_graphs_of_a_snapshot_that_is_gone_are_dropped(pair, graphs):
    fewer = pair.experts.without("a")
    gates = GateVector((0.75, 0.25))
    pair.check([pair.prefill(0, 9, gates, fewer)], fewer)
    held = static.weakref.ref(fewer)
    del fewer
    gc.collect()
    assert held() is None, "a graph keeps no snapshot alive"
    pair.check([pair.prefill(0, 9, SOFT)])
    [(snapshot, _)] = graphs
    assert snapshot() is pair.experts


def test_the_graph_not_used_for_longest_goes_first(pair, graphs, monkeypatch):
    monkeypatch.setattr(static, "MAX_GRAPHS", 2)
    short, long, wide = (
        pair.prefill(0, 9, SOFT),
        pair.prefill(0, 20, SOFT),
        pair.prefill(1, 9, SOFT),
    )
    for row in (short, long, short, wide):
        pair.model.decode([row], pair.static, pair.experts)
    assert [shape for _, shape in graphs] == [Shape(1, 16), Shape(2, 16)]


@pytest.mark.parametrize(("asked", "told"), [("auto", "eager"), ("eager", "eager")])
def test_what_is_chosen_on_a_cpu(pair, asked, told):
    assert server._decode(ExecutorSettings(decode=asked), pair.model) == told


def test_graphs_without_a_device_are_refused(pair):
    with pytest.raises(NotLoadable, match="--decode eager"):
        server._decode(ExecutorSettings(decode="cuda_graph"), pair.model)
