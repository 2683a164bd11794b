"""`MultiLoRAWithRouter` against the stacked path that serves, and against PEFT."""

from pathlib import Path

import pytest
import torch
from torch import nn

from executor_service.core import GateVector, RoutingMode
from executor_service.model.features import FeatureRow
from executor_service.model.gated import Routing
from executor_service.model.mixture import LoraWeights, MixtureStacks
from executor_service.model.reference import Instruction, MixtureOutput, MultiLoRAWithRouter
from tests.unit.executor_service.model import tiny
from tests.unit.executor_service.model.tiny import AdapterRecipe

TOLERANCE = 1e-5
VISIBLE = 1000 * TOLERANCE
RECIPES = {
    "a": AdapterRecipe(rank=4, seed=1),
    "b": AdapterRecipe(rank=8, alpha=4, rslora=True, seed=2),
    "c": AdapterRecipe(rank=2, vision=(), seed=3),
    "d": AdapterRecipe(rank=3, llm=("q_proj", "down_proj"), seed=4),
}
COUNT = len(RECIPES)
KEPT = {RoutingMode.TOP1: 1, RoutingMode.TOP2: 2, RoutingMode.SOFT: COUNT}
SCREENS = (tiny.screen(2, 3), tiny.screen(1, 2, seed=1), tiny.screen(2, 2, seed=2))
HEAD, TAIL = (5, 6), (7, 8)


def rows() -> list[Instruction]:
    """Instructions of different lengths, each with its own screen."""
    made = []
    for at, pixels in enumerate(SCREENS):
        text = tuple(range(20 + 9 * at, 23 + 11 * at))
        prompt = tiny.prompt(pixels.image_tokens, [*text, *TAIL], before=HEAD)
        made.append(Instruction(prompt, (*HEAD, *text, *TAIL), (2, 2 + len(text))))
    return made


class Head(nn.Module):
    """A router: one linear over both features, gentle enough that soft gates stay soft."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, COUNT)
        nn.init.normal_(self.linear.weight, std=0.1)

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        both = torch.cat([text, vision], dim=-1)
        return self.linear(nn.functional.layer_norm(both, both.shape[-1:]))


def policy(
    router_logits: torch.Tensor, mode: RoutingMode, top_k: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax; the best k keep their share, divided by its sum. `top_k` is stronger than mode."""
    probabilities = router_logits.softmax(dim=-1)
    best = probabilities.topk(top_k or KEPT[mode], dim=-1).indices
    kept = torch.zeros_like(probabilities).scatter(-1, best, 1.0) * probabilities
    return probabilities, kept / kept.sum(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    return tiny.write_experts(tmp_path_factory.mktemp("experts"), RECIPES)


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def experts(model, directories):
    return tiny.load_set(model, directories)


@pytest.fixture(scope="module")
def peft(directories):
    return tiny.peft_model(directories)


@pytest.fixture(scope="module")
def mixture(model, experts) -> MultiLoRAWithRouter:
    torch.manual_seed(19)  # Every row has another best expert.
    return MultiLoRAWithRouter(model, experts, model.feature_spec(text_layer=2), Head(), policy)


def gate_vectors(output: MixtureOutput) -> tuple[GateVector, ...]:
    return tuple(GateVector(tuple(row.tolist())) for row in output.gates)


CHOICES = [
    (RoutingMode.SOFT, None, COUNT),
    (RoutingMode.SOFT, 1, 1),
    (RoutingMode.SOFT, 2, 2),
    (RoutingMode.SOFT, 3, 3),
    (RoutingMode.TOP1, None, 1),
    (RoutingMode.TOP2, None, 2),
    (RoutingMode.TOP2, 1, 1),
]


@pytest.mark.parametrize(("mode", "top_k", "kept"), CHOICES)
def test_mode_and_top_k_reach_the_policy_and_its_gates_are_applied(mixture, mode, top_k, kept):
    with torch.no_grad():
        output = mixture(rows(), SCREENS, mode, top_k)
    assert output.gate_probabilities.shape == output.gates.shape == (len(SCREENS), COUNT)
    assert (output.gates > 0).sum(dim=-1).tolist() == [kept] * len(SCREENS)
    ones = torch.ones(len(SCREENS))
    assert torch.allclose(output.gates.sum(dim=-1), ones)
    # The probabilities are those before mode and top-k, whatever these say.
    assert torch.allclose(output.gate_probabilities.sum(dim=-1), ones)
    assert bool((output.gate_probabilities > 0.01).all())
    assert bool((output.gate_probabilities < 0.9).all())


@torch.no_grad()
@pytest.mark.parametrize(("mode", "top_k", "kept"), CHOICES)
def test_it_equals_the_stacked_path_that_serves(mixture, model, experts, mode, top_k, kept):
    """There the gates are known on the host and only the active experts are in the stacks."""
    output = mixture(rows(), SCREENS, mode, top_k)
    routing = Routing(experts, gate_vectors(output))
    vision = model.encode_vision(SCREENS, routing)
    served = model.forward_rows([row.prompt for row in rows()], vision, routing)
    for ours, theirs in zip(output.logits, served, strict=True):
        assert ours.shape == theirs.shape
        assert tiny.relative_error(ours, theirs) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(("mode", "top_k", "kept"), CHOICES)
def test_it_equals_pefts_deltas_row_by_row(mixture, peft, mode, top_k, kept):
    output = mixture(rows(), SCREENS, mode, top_k)
    for at, (row, pixels) in enumerate(zip(rows(), SCREENS, strict=True)):
        with tiny.merged(peft, list(RECIPES), gate_vectors(output)[at]):
            theirs = tiny.reference_logits(peft, row.prompt, pixels)
        with peft.disable_adapter():
            bare = tiny.reference_logits(peft, row.prompt, pixels)
        assert tiny.relative_error(output.logits[at], theirs) <= TOLERANCE
        assert tiny.relative_error(bare, theirs) > VISIBLE


@torch.no_grad()
def test_top_1_equals_pefts_single_adapter(mixture, peft):
    output = mixture(rows(), SCREENS, RoutingMode.TOP1)
    best = output.gate_probabilities.argmax(dim=-1).tolist()
    assert len(set(best)) == len(SCREENS)
    for at, (row, pixels) in enumerate(zip(rows(), SCREENS, strict=True)):
        peft.set_adapter(list(RECIPES)[best[at]])
        alone = tiny.reference_logits(peft, row.prompt, pixels)
        assert tiny.relative_error(output.logits[at], alone) <= TOLERANCE
        peft.set_adapter(list(RECIPES)[best[at] - 1])
        other = tiny.reference_logits(peft, row.prompt, pixels)
        assert tiny.relative_error(other, alone) > VISIBLE


@torch.no_grad()
def test_a_row_is_routed_by_its_own_features(mixture):
    together = mixture(rows(), SCREENS)
    for at, (row, pixels) in enumerate(zip(rows(), SCREENS, strict=True)):
        alone = mixture([row], [pixels])
        assert tiny.relative_error(together.gates[at], alone.gates[0]) <= TOLERANCE
        assert tiny.relative_error(together.logits[at], alone.logits[0]) <= TOLERANCE
    assert tiny.relative_error(together.gates[0], together.gates[1]) > VISIBLE


@torch.no_grad()
def test_the_router_reads_the_features_that_the_service_extracts(mixture, model):
    [seen] = model.encode_vision(SCREENS[:1], None)
    [row, *_] = rows()
    asked = FeatureRow(row.feature_ids, row.feature_span, seen)
    [features] = model.features([asked], mixture._spec)
    logits = mixture.router(features.text[None], features.vision[None])
    assert torch.allclose(mixture([row], SCREENS[:1]).gate_probabilities, logits.softmax(dim=-1))


def test_only_the_router_learns_and_through_the_gates(mixture, model):
    parameters = dict(mixture.named_parameters())
    assert set(parameters) == {"router.linear.weight", "router.linear.bias"}
    loss = sum(logits.logsumexp(dim=-1).mean() for logits in mixture(rows(), SCREENS).logits)
    bias = parameters["router.linear.bias"]
    [slope] = torch.autograd.grad(loss, [bias])
    # The gradient is that of the output, through every layer: a step along it lowers the loss.
    step = 1e-2 / float(slope.norm())
    with torch.no_grad():
        bias -= step * slope
        lower = sum(logits.logsumexp(dim=-1).mean() for logits in mixture(rows(), SCREENS).logits)
        bias += step * slope
    expected = -1e-2 * float(slope.norm())
    assert float(lower - loss.detach()) == pytest.approx(expected, rel=0.1)
    assert all(parameter.grad is None for parameter in model.base.parameters())


def test_gates_are_gone_when_the_forward_is_over(mixture, model):
    with torch.no_grad():
        mixture(rows(), SCREENS)
    assert not model.state.updates


# --- activation checkpointing -------------------------------------------------------------------


def slope_of(mixture: MultiLoRAWithRouter) -> torch.Tensor:
    loss = sum(logits.logsumexp(dim=-1).mean() for logits in mixture(rows(), SCREENS).logits)
    [slope] = torch.autograd.grad(loss, [mixture.router.linear.weight])
    return slope


@pytest.fixture
def checkpointing(directories):
    """A mixture of its own, whose base recomputes its layers during backward."""
    torch.manual_seed(0)
    model = tiny.tiny_model()
    experts = tiny.load_set(model, directories)
    base = model.base
    # transformers 5.24 renamed it.
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    base.train()
    return MultiLoRAWithRouter(model, experts, model.feature_spec(text_layer=2), Head(), policy)


def test_checkpointing_without_keeping_the_gates_is_refused(checkpointing):
    with pytest.raises(RuntimeError, match="keeping_gates"):
        checkpointing(rows(), SCREENS)
    with torch.no_grad():
        checkpointing(rows(), SCREENS)


def test_gradients_under_checkpointing_equal_those_without(checkpointing, mixture):
    checkpointing.router.load_state_dict(mixture.router.state_dict())
    expected = slope_of(mixture)
    runs = []
    layer = checkpointing._model.base.model.language_model.layers[1].mlp
    hook = layer.register_forward_pre_hook(lambda *_: runs.append(checkpointing._kept))
    with checkpointing.keeping_gates():
        found = slope_of(checkpointing)
        assert checkpointing._model.state.updates
    hook.remove()
    # Features of all rows, the forward, and once more during backward.
    assert len(runs) == 3
    assert tiny.relative_error(found, expected) <= 1e-4
    assert not checkpointing._model.state.updates


def test_kept_gates_serve_one_forward(checkpointing):
    with checkpointing.keeping_gates():
        checkpointing(rows(), SCREENS)
        with pytest.raises(RuntimeError, match="being applied already"):
            checkpointing(rows(), SCREENS)
    assert not checkpointing._model.state.updates


# --- gates per layer ----------------------------------------------------------------------------


class LayeredHead(nn.Module):
    """A router with gates of its own for each of the three decoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 3 * COUNT)
        nn.init.normal_(self.linear.weight, std=0.2)

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        both = torch.cat([text, vision], dim=-1)
        return self.linear(nn.functional.layer_norm(both, both.shape[-1:])).unflatten(1, (3, COUNT))


@pytest.fixture(scope="module")
def layered(model, experts) -> MultiLoRAWithRouter:
    torch.manual_seed(7)
    spec = model.feature_spec(text_layer=2)
    return MultiLoRAWithRouter(model, experts, spec, LayeredHead(), policy)


@torch.no_grad()
def test_gates_per_layer_equal_the_stacked_path_with_their_mean_in_the_tower(
    layered, model, experts
):
    output = layered(rows(), SCREENS)
    assert output.gates.shape == (len(SCREENS), 3, COUNT)
    tower = tuple(GateVector(tuple(row.tolist())) for row in output.gates.mean(dim=1))
    text = tuple(
        GateVector(row.weights, tuple(tuple(layer.tolist()) for layer in layers))
        for row, layers in zip(tower, output.gates, strict=True)
    )
    vision = model.encode_vision(SCREENS, Routing(experts, tower))
    routing = Routing(experts, text)
    served = model.forward_rows([row.prompt for row in rows()], vision, routing)
    even = model.forward_rows([row.prompt for row in rows()], vision, Routing(experts, tower))
    for ours, theirs, same in zip(output.logits, served, even, strict=True):
        assert tiny.relative_error(ours, theirs) <= TOLERANCE
        assert tiny.relative_error(same, theirs) > VISIBLE


def test_every_layers_gates_have_a_gradient_of_their_own(layered):
    loss = sum(logits.logsumexp(dim=-1).mean() for logits in layered(rows(), SCREENS).logits)
    [slope] = torch.autograd.grad(loss, [layered.router.linear.weight])
    by_layer = slope.view(3, COUNT, -1)
    assert bool((by_layer.abs().amax(dim=(1, 2)) > 0).all())
    assert not torch.allclose(by_layer[0], by_layer[1])


def test_experts_that_are_a_module_learn_too(model, experts):
    class Scaled(nn.Module):
        """The experts of the set, their A times one learnt number."""

        def __init__(self) -> None:
            super().__init__()
            self.names = experts.names
            self.factor = nn.Parameter(torch.ones(()))

        @property
        def stacks(self) -> MixtureStacks:
            weights = [
                {
                    name: LoraWeights(self.factor * pair.down, pair.up, pair.scale)
                    for name, pair in expert.weights.items()
                }
                for expert in experts.experts
            ]
            return MixtureStacks(weights, model.targets, model.device)

    torch.manual_seed(19)
    spec = model.feature_spec(text_layer=2)
    mixture = MultiLoRAWithRouter(model, Scaled(), spec, Head(), policy)
    parameters = dict(mixture.named_parameters())
    assert {name.split(".")[0] for name in parameters} == {"router", "_experts"}
    loss = sum(logits.logsumexp(dim=-1).mean() for logits in mixture(rows(), SCREENS).logits)
    loss.backward()
    assert all(float(part.grad.abs().max()) > 0 for part in parameters.values())
