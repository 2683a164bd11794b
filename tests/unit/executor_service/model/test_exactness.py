"""The gated model against PEFT itself, fp32: DESIGN's invariants 1 and 2."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from executor_service.core import GateVector, RoutingChoice, RoutingMode, resolve_gates
from executor_service.model.experts import ExpertSet
from executor_service.model.gated import DecodeRow, GatedModel, Routing
from tests.unit.executor_service.model import tiny
from tests.unit.executor_service.model.tiny import AdapterRecipe

TOLERANCE = 1e-5
# A comparison says something only if what is compared lies far outside the tolerance otherwise.
VISIBLE = 1000 * TOLERANCE
NUM_LAYERS = 3
HALF_IN_TOWER = dict.fromkeys(tiny.VISION_MODULES, 2)
# Seven experts that differ in everything a mixture must get right.
RECIPES = {
    "a": AdapterRecipe(rank=4, rank_pattern=HALF_IN_TOWER, seed=1),
    "b": AdapterRecipe(rank=8, alpha=4, rslora=True, seed=2),
    "c": AdapterRecipe(rank=2, vision=(), seed=3),
    "d": AdapterRecipe(rank=3, llm=("q_proj", "down_proj"), seed=4),
    "e": AdapterRecipe(rank=5, llm=("v_proj",), vision=("visual.patch_embed.proj",), seed=5),
    "f": AdapterRecipe(
        rank=6,
        alpha_pattern={"o_proj": 3.0, "model.visual.patch_embed.proj": 2.0},
        rank_pattern={r"layers\.1\.mlp\.up_proj": 1},
        seed=6,
    ),
    "g": AdapterRecipe(rank=4, llm=("k_proj",), vision=("linear_fc1", "attn.qkv"), seed=7),
}


class Side:
    """Both implementations of the same experts."""

    def __init__(self, root: Path, recipes: dict[str, AdapterRecipe]) -> None:
        directories = tiny.write_experts(root, recipes)
        self.names = list(directories)
        self.peft = tiny.peft_model(directories)
        self.model: GatedModel = tiny.tiny_model()
        self.experts: ExpertSet = tiny.load_set(self.model, directories)
        self.pixels = tiny.screen(2, 3)
        self.prompt = tiny.prompt(6, [7, 8, 9, 10])

    def ours(self, gates: GateVector) -> torch.Tensor:
        return tiny.gated_logits(self.model, self.experts, gates, self.prompt, self.pixels)

    @torch.no_grad()
    def reference(self, gates: GateVector) -> torch.Tensor:
        with tiny.merged(self.peft, self.names, gates):
            return tiny.reference_logits(self.peft, self.prompt, self.pixels)

    @torch.no_grad()
    def single(self, name: str) -> torch.Tensor:
        self.peft.set_adapter(name)
        return tiny.reference_logits(self.peft, self.prompt, self.pixels)

    def check(self, gates: GateVector) -> None:
        """Ours equals the sum of deltas, and the bare base does not come near it."""
        theirs = self.reference(gates)
        assert tiny.relative_error(self.ours(gates), theirs) <= TOLERANCE
        if not gates.is_zero:
            bare = self.reference(GateVector.zeros(len(self.names)))
            assert tiny.relative_error(bare, theirs) > VISIBLE


@pytest.fixture(scope="module", params=[1, 2, 7])
def side(request, tmp_path_factory) -> Side:
    names = sorted(RECIPES)[: request.param]
    root = tmp_path_factory.mktemp(f"k{request.param}")
    return Side(root, {name: RECIPES[name] for name in names})


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Side:
    return Side(tmp_path_factory.mktemp("seven"), RECIPES)


def soft(count: int, seed: int = 0) -> GateVector:
    noise = torch.Generator().manual_seed(seed)
    return GateVector(tuple(torch.rand(count, generator=noise).softmax(0).tolist()))


def test_one_hot_equals_pefts_single_adapter(side):
    base = side.reference(GateVector.zeros(len(side.names)))
    for index, name in enumerate(side.names):
        ours, theirs = side.ours(GateVector.one_hot(len(side.names), index)), side.single(name)
        assert tiny.relative_error(ours, theirs) <= TOLERANCE, name
        assert tiny.relative_error(base, theirs) > VISIBLE, name


def test_soft_gates_equal_the_sum_of_deltas(side):
    side.check(soft(len(side.names)))


def test_zero_gates_equal_the_bare_base(side):
    with torch.no_grad():
        bare = tiny.reference_logits(tiny.tiny_base(), side.prompt, side.pixels)
    assert tiny.relative_error(side.ours(GateVector.zeros(len(side.names))), bare) <= TOLERANCE


def test_a_wrong_scale_is_caught(seven, monkeypatch):
    """The comparison has teeth: one expert's scaling off by a thousandth is seen."""
    expand = seven.experts.stacks._expand
    experts = seven.model.expert_set(seven.experts.experts)
    monkeypatch.setattr(
        experts.stacks, "_expand", lambda gates, layout: expand(gates, layout) * 1.001
    )
    one_hot = GateVector.one_hot(7, 1)
    ours = tiny.gated_logits(seven.model, experts, one_hot, seven.prompt, seven.pixels)
    assert tiny.relative_error(ours, seven.single("b")) > TOLERANCE


@pytest.mark.parametrize("mode", [RoutingMode.TOP1, RoutingMode.TOP2, RoutingMode.SOFT])
@pytest.mark.parametrize("masked", [(), ("b",), ("a", "c", "g")])
def test_modes_and_masks(seven, mode, masked):
    weights = dict(zip(seven.names, soft(7, seed=3).weights, strict=True))
    choice = RoutingChoice(gates=weights, mode=mode, masked=masked)
    seven.check(resolve_gates(choice, seven.names, NUM_LAYERS))


def test_layer_gates_equal_deltas_per_layer(seven):
    gates = GateVector(
        soft(7).weights, (soft(7, seed=1).weights, soft(7, seed=2).weights, (0.0,) * 7)
    )
    seven.check(gates)
    everywhere_alike = seven.ours(GateVector(gates.weights))
    assert tiny.relative_error(everywhere_alike, seven.reference(gates)) > VISIBLE


def test_pefts_cat_agrees_where_the_first_adapter_is_plain(seven):
    """With an rsLoRA adapter first, `cat` takes over its config and is wrong; ours is not."""
    gates = GateVector((0.5, 0.0, 0.375, 0.125, 0.0, 0.0, 0.0))
    names, weights = ["a", "c", "d"], [0.5, 0.375, 0.125]
    assert tiny.relative_error(seven.ours(gates), combined(seven, names, weights)) <= TOLERANCE
    seven.check(gates)
    gates = GateVector((0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0))
    wrong = combined(seven, ["b", "a"], [0.5, 0.5])
    assert tiny.relative_error(wrong, seven.reference(gates)) > VISIBLE
    seven.check(gates)


@torch.no_grad()
def combined(side: Side, names: list[str], weights: list[float]) -> torch.Tensor:
    side.peft.add_weighted_adapter(names, weights, "cat", combination_type="cat")
    try:
        return side.single("cat")
    finally:
        side.peft.set_adapter(side.names[0])
        side.peft.delete_adapter("cat")


def test_a_screen_that_is_kept_keeps_no_other(seven):
    screens = [seven.pixels] * 3
    routing = Routing(seven.experts, (soft(7),) * 3)
    for vision in seven.model.encode_vision(screens, routing):
        for part in (vision.embeds, *vision.deepstack):
            assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("left_padded", [False, True])
def test_mixed_rows_equal_each_row_alone_under_peft(seven, left_padded):
    """Rows of different lengths, screens and experts in one batch."""
    screens = [tiny.screen(rows, 2 + rows % 2, seed=rows) for rows in (1, 2, 3, 1, 2, 3, 2, 1)]
    prompts = [
        tiny.prompt(screen.image_tokens, range(1, 4 + 3 * row))
        for row, screen in enumerate(screens)
    ]
    gates = (*(GateVector.one_hot(7, index) for index in range(7)), GateVector.zeros(7))
    routing = Routing(seven.experts, gates)
    with torch.no_grad():
        vision = seven.model.encode_vision(screens, routing)
        rows = seven.model.forward_rows(prompts, vision, routing, left_padded=left_padded)
        for index, logits in enumerate(rows):
            with seven.peft.disable_adapter():
                alone = bare = tiny.reference_logits(seven.peft, prompts[index], screens[index])
            if index < 7:
                seven.peft.set_adapter(seven.names[index])
                alone = tiny.reference_logits(seven.peft, prompts[index], screens[index])
                assert tiny.relative_error(bare, alone) > VISIBLE, index
            assert logits.shape == alone.shape
            assert tiny.relative_error(logits, alone) <= TOLERANCE, index


def test_mixed_soft_and_layered_rows(seven):
    screens = [tiny.screen(2, 2, seed=9), tiny.screen(1, 3, seed=8), tiny.screen(1, 1, seed=7)]
    prompts = [tiny.prompt(screen.image_tokens, [3, 4, 5]) for screen in screens]
    layered = GateVector(soft(7, seed=5).weights, (soft(7, seed=6).weights,) * NUM_LAYERS)
    gates = (soft(7, seed=4), layered, GateVector.one_hot(7, 2))
    routing = Routing(seven.experts, gates)
    with torch.no_grad():
        rows = seven.model.forward_rows(
            prompts, seven.model.encode_vision(screens, routing), routing
        )
        for row, prompt, pixels, gate in zip(rows, prompts, screens, gates, strict=True):
            with tiny.merged(seven.peft, seven.names, gate):
                alone = tiny.reference_logits(seven.peft, prompt, pixels)
                bare = tiny.reference_logits(tiny.tiny_base(), prompt, pixels)
            assert tiny.relative_error(row, alone) <= TOLERANCE
            assert tiny.relative_error(bare, alone) > VISIBLE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_prefill_and_decode_equal_one_forward(seven, seed, chunk):
    gates = soft(7, seed) if seed else GateVector.one_hot(7, 0)
    routing = Routing(seven.experts, (gates,))
    whole = tiny.prompt(6, [7, 8, 9, 10, 30, 31, 32, 33])
    start = len(whole.ids) - 4
    prompt = tiny.prompt(6, [7, 8, 9, 10])
    [vision] = seven.model.encode_vision([seven.pixels], routing)
    off = Routing(seven.experts, (GateVector.zeros(7),))
    with torch.no_grad():
        [full] = seven.model.forward_rows([whole], [vision], routing)
        [bare] = seven.model.forward_rows([whole], [vision], off)
    assert tiny.relative_error(bare[start:], full[start:]) > VISIBLE
    slots = seven.model.slot_cache(slots=3, length=32)
    row = seven.model.row(prompt, vision)
    for at in range(0, start, chunk):
        span = (at, min(at + chunk, start))
        hidden = seven.model.prefill(row, span, slots, 1, routing)
        assert tiny.relative_error(seven.model.logits(hidden), full[slice(*span)]) <= TOLERANCE
    offset = int(row.positions[1:].max()) + 1 - start
    for at in range(start, len(whole.ids)):
        token = DecodeRow(whole.ids[at], 1, at, at + offset, gates)
        [logits] = seven.model.decode([token], slots, seven.experts)
        assert tiny.relative_error(logits, full[at]) <= TOLERANCE


def test_answers_decoded_together_are_those_of_each_alone(seven):
    """Rows of other lengths, positions, screens and gates, a gap between their slots."""
    slots = seven.model.slot_cache(slots=4, length=64)
    placed = {3: soft(7, 1), 0: GateVector.one_hot(7, 2), 2: GateVector.zeros(7)}
    rows, expected = [], []
    for slot, gates in placed.items():
        routing = Routing(seven.experts, (gates,))
        pixels = tiny.screen(1 + slot, 2, seed=slot)
        prompt = tiny.prompt(2 + 2 * slot, [7, 8, 9][: 1 + slot])
        [vision] = seven.model.encode_vision([pixels], routing)
        row = seven.model.row(prompt, vision)
        seven.model.prefill(row, (0, len(prompt.ids)), slots, slot, routing)
        position = int(row.positions[1:].max()) + 1
        rows.append(DecodeRow(40 + slot, slot, len(prompt.ids), position, gates))
        longer = tiny.prompt(2 + 2 * slot, [*[7, 8, 9][: 1 + slot], 40 + slot])
        with torch.no_grad():
            expected.append(seven.model.forward_rows([longer], [vision], routing)[0][-1])
    together = seven.model.decode(rows, slots, seven.experts)
    for logits, wanted in zip(together, expected, strict=True):
        assert tiny.relative_error(logits, wanted) <= TOLERANCE
    assert not slots.keys[0][1].any(), "the slot in the gap was not written"


def test_a_restored_prefix_is_as_good_as_a_prefilled_one(seven):
    routing = Routing(seven.experts, (soft(7),))
    [vision] = seven.model.encode_vision([seven.pixels], routing)
    row, length = seven.model.row(seven.prompt, vision), len(seven.prompt.ids)
    slots = seven.model.slot_cache(slots=2, length=32)
    whole = seven.model.prefill(row, (0, length), slots, 0, routing)
    slots.restore(1, slots.save(0, 2))
    assert torch.equal(slots.keys[1][1, :, :2], slots.keys[1][0, :, :2])
    rest = seven.model.prefill(row, (2, length), slots, 1, routing)
    assert tiny.relative_error(rest, whole[2:]) <= TOLERANCE


def test_a_cleared_slot_forgets_what_is_not_a_number(seven):
    slots = seven.model.slot_cache(slots=2, length=8)
    for part in (*slots.keys, *slots.values):
        part.fill_(float("nan"))
    slots.clear(1)
    assert all(not part[1].any() and part[0].isnan().all() for part in slots.values)


def test_log_probabilities_are_those_of_one_forward(seven):
    routing = Routing(seven.experts, (soft(7),))
    completion = [30, 31, 32]
    whole = tiny.prompt(6, [7, 8, 9, 10, *completion])
    [vision] = seven.model.encode_vision([seven.pixels], routing)
    slots = seven.model.slot_cache(slots=1, length=32)

    def scores(routing: Routing) -> torch.Tensor:
        row = seven.model.row(whole, vision)
        hidden = seven.model.prefill(row, (0, len(whole.ids)), slots, 0, routing)
        return torch.tensor(seven.model.log_probabilities(hidden[-4:-1], completion))

    with tiny.merged(seven.peft, seven.names, soft(7)), torch.no_grad():
        logits = tiny.reference_logits(seven.peft, whole, seven.pixels)
    expected = logits.log_softmax(-1)[-4:-1].gather(1, torch.tensor(completion)[:, None])[:, 0]
    assert tiny.relative_error(scores(routing), expected) <= TOLERANCE
    off = Routing(seven.experts, (GateVector.zeros(7),))
    assert tiny.relative_error(scores(off), expected) > VISIBLE


recipes = st.builds(
    AdapterRecipe,
    rank=st.integers(1, 9),
    alpha=st.floats(0.5, 16).map(lambda alpha: round(alpha, 3)),
    rslora=st.booleans(),
    llm=st.lists(st.sampled_from(tiny.LLM_LINEARS), min_size=1, unique=True).map(tuple),
    vision=st.lists(
        st.sampled_from([*tiny.VISION_MODULES, "visual.merger.linear_fc2", "mlp.linear_fc1"]),
        unique=True,
    ).map(tuple),
    rank_pattern=st.dictionaries(
        st.sampled_from(["q_proj", "attn.proj", r"layers\.2\..*", "patch_embed.proj"]),
        st.integers(1, 6),
        max_size=2,
    ),
    alpha_pattern=st.dictionaries(
        st.sampled_from(["v_proj", "patch_embed.proj", "mlp.up_proj"]),
        st.floats(0.5, 8).map(lambda alpha: round(alpha, 3)),
        max_size=2,
    ),
    seed=st.integers(0, 999),
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    # An example takes half a second, too much for shrinking.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_experts_any_gates(tmp_path_factory, data):
    chosen = data.draw(st.lists(recipes, min_size=1, max_size=4, unique_by=lambda r: r.seed))
    side = Side(
        tmp_path_factory.mktemp("any"), {f"e{at}": recipe for at, recipe in enumerate(chosen)}
    )
    raw = data.draw(st.lists(st.integers(0, 5), min_size=len(chosen), max_size=len(chosen)))
    total = sum(raw) or 1
    side.check(GateVector(tuple(torch.tensor([part / total for part in raw]).tolist())))
