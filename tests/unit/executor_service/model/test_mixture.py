import pytest
import torch

from executor_service.core import GateVector
from executor_service.model.experts import ExpertSet
from executor_service.model.mixture import LoraWeights, MixtureStacks
from executor_service.model.targets import RowKind, Target

D_IN, D_OUT = 6, 10
TEXT = Target("text", D_IN, D_OUT, RowKind.TEXT, layer=0)
PATCH = Target("patch", D_IN, D_OUT, RowKind.PATCH)
MERGED = Target("merged", D_IN, D_OUT, RowKind.MERGED)
TARGETS = {target.name: target for target in (TEXT, PATCH, MERGED)}
RANKS = (2, 3, 1, 4)


def weights(rank: int, scale: float) -> LoraWeights:
    return LoraWeights(torch.randn(rank, D_IN), torch.randn(rank, D_OUT), scale)


@pytest.fixture
def experts() -> list[dict[str, LoraWeights]]:
    torch.manual_seed(0)
    everywhere = [{name: weights(rank, 0.5 * rank) for name in TARGETS} for rank in RANKS]
    del everywhere[1]["text"]
    return everywhere


@pytest.fixture
def stacks(experts) -> MixtureStacks:
    return MixtureStacks(experts, TARGETS, torch.device("cpu"))


def gates(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows)


def test_gates_are_spread_over_ranks_with_their_scaling(stacks):
    update = stacks.text_updates(gates((0.5, 9, 0.25, 1)), None, range(4))["text"]
    # Expert 1 does not adapt this module.
    expected = [0.5 * 1.0] * 2 + [0.25 * 0.5] + [1 * 2.0] * 4
    assert update.gates.shape == (1, 1, 7)
    assert update.gates.flatten().tolist() == expected
    assert update.down.shape == (7, D_IN)
    assert update.up.shape == (7, D_OUT)


def test_no_active_expert_means_no_update(stacks):
    assert stacks.text_updates(gates((0, 0, 0, 0)), None, ()) == {}
    # The only active expert leaves the language model alone.
    assert stacks.text_updates(gates((0, 1, 0, 0)), None, (1,)) == {}
    assert set(stacks.tower_updates(gates((0, 1, 0, 0)), [4], 4, (1,))) == {"patch", "merged"}


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_neighbours_are_views_and_scattered_experts_a_kept_copy(stacks, experts):
    whole = stacks.tower_updates(gates((1, 1, 1, 1)), [4], 4, range(4))["patch"]
    run = stacks.tower_updates(gates((0, 1, 1, 0)), [4], 4, (1, 2))["patch"]
    assert storage(run.down) == storage(whole.down)
    assert storage(run.up) == storage(whole.up)
    assert run.down.is_contiguous()
    assert run.up.is_contiguous()
    assert torch.equal(run.down, torch.cat([experts[1]["patch"].down, experts[2]["patch"].down]))
    apart = stacks.tower_updates(gates((1, 0, 1, 0)), [4], 4, (0, 2))["patch"]
    assert storage(apart.down) != storage(whole.down)
    assert torch.equal(apart.up, torch.cat([experts[0]["patch"].up, experts[2]["patch"].up]))
    again = stacks.tower_updates(gates((0.5, 0, 0.5, 0)), [4], 4, (0, 2))["patch"]
    assert again.down is apart.down
    # In "text" experts 0 and 2 are neighbours: no copy there.
    text = stacks.text_updates(gates((1, 0, 1, 0)), None, (0, 2))["text"]
    full = stacks.text_updates(gates((1, 0, 1, 0)), None, range(4))["text"]
    assert storage(text.down) == storage(full.down)


def test_copies_never_take_more_memory_than_the_stacks():
    torch.manual_seed(0)
    many = [{name: weights(2, 1.0) for name in TARGETS} for _ in range(12)]
    stacks = MixtureStacks(many, TARGETS, torch.device("cpu"))
    for first in range(12):
        for second in range(first + 2, 12):
            one = [0.0] * 12
            one[first] = one[second] = 0.5
            update = stacks.tower_updates(gates(tuple(one)), [4], 4, (first, second))["patch"]
            assert torch.equal(update.down[2:], many[second]["patch"].down)
            kept = sum(selection.copied_bytes for selection in stacks._selections.values())
            assert kept == stacks._copied_bytes <= stacks.nbytes
    assert stacks._copied_bytes > 0


def test_packed_images_get_their_own_gates_row_by_row(stacks):
    rows = gates((1, 0, 0, 0), (0, 0, 0, 1))
    updates = stacks.tower_updates(rows, [8, 4], 4, (0, 3))
    patch, merged = updates["patch"].gates, updates["merged"].gates
    assert patch.shape == (12, 6)
    assert merged.shape == (3, 6)
    assert torch.equal(patch[:8], torch.tensor([1.0, 1, 0, 0, 0, 0]).expand(8, 6))
    assert torch.equal(patch[8:], torch.tensor([0.0, 0, 2, 2, 2, 2]).expand(4, 6))
    assert torch.equal(merged[2], patch[8])


def test_layer_gates_replace_the_rows(stacks):
    layers = torch.tensor([[[0.0, 0, 1, 0]]])
    update = stacks.text_updates(gates((1, 0, 0, 0)), layers, (0, 2))["text"]
    assert update.gates.flatten().tolist() == [0, 0, 0.5]


def test_equal_rows_share_one_row_of_gates():
    experts = ExpertSet([], TARGETS, torch.device("cpu"))
    assert experts.text_updates((GateVector(()),) * 3) == {}
    assert experts.tower_updates((GateVector(()),), (4,), 4) == {}
