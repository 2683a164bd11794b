import pytest
import torch
import torch._dynamo.testing
from torch import nn

from executor_service.model.layers import GatedForward, GatedUpdate, GateState, gated, install
from executor_service.model.mixture import LoraWeights, MixtureStacks
from executor_service.model.targets import RowKind, Target
from tests.unit.executor_service.model import tiny

D_IN, D_OUT = 12, 20


def update(rank: int, gates_shape: tuple[int, ...], dtype=torch.float32) -> GatedUpdate:
    noise = torch.Generator().manual_seed(rank)
    return GatedUpdate(
        torch.randn(rank, D_IN, generator=noise).to(dtype),
        torch.randn(rank, D_OUT, generator=noise).to(dtype),
        torch.rand(*gates_shape, rank, generator=noise),
    )


def install_on(module: nn.Module, kernel: tuple[int, ...] = ()) -> tuple[nn.Module, GateState]:
    model = nn.Module()
    model.layer = module
    state = install(model, [Target("layer", D_IN, D_OUT, RowKind.TEXT, kernel)])
    return model.layer, state


@pytest.mark.parametrize("gates_shape", [(1, 1), (3, 1), (3, 5)], ids=["all", "row", "token"])
def test_gates_may_differ_by_row_and_by_token(gates_shape):
    layer, state = install_on(nn.Linear(D_IN, D_OUT))
    x, change = torch.randn(3, 5, D_IN), update(7, gates_shape)
    with state.applied({"layer": change}):
        y = layer(x)
    gates = change.gates.expand(3, 5, 7)
    for row in range(3):
        for token in range(5):
            delta = change.up.T @ torch.diag(gates[row, token]) @ change.down
            expected = x[row, token] @ (layer.weight + delta).T + layer.bias
            assert torch.allclose(y[row, token], expected, atol=1e-5)


def test_packed_rows():
    layer, state = install_on(nn.Linear(D_IN, D_OUT))
    x, change = torch.randn(9, D_IN), update(4, (9,))
    with state.applied({"layer": change}):
        y = layer(x)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    expected += (x @ change.down.T * change.gates) @ change.up
    assert torch.allclose(y, expected, atol=1e-5)


def test_a_convolution_whose_stride_is_its_kernel():
    convolution = nn.Conv3d(3, D_OUT, kernel_size=(2, 1, 2), stride=(2, 1, 2))
    layer, state = install_on(convolution, kernel=(3, 2, 1, 2))
    x, change = torch.randn(9, 3, 2, 1, 2), update(4, (1,))
    with state.applied({"layer": change}):
        y = layer(x)
    delta = (change.up.T * change.gates) @ change.down
    weight = convolution.weight + delta.view_as(convolution.weight)
    expected = nn.functional.conv3d(x, weight, convolution.bias, stride=(2, 1, 2))
    assert y.shape == (9, D_OUT, 1, 1, 1)
    assert torch.allclose(y, expected, atol=1e-5)


def test_without_an_update_the_base_runs_alone():
    layer, state = install_on(nn.Linear(D_IN, D_OUT))
    x = torch.randn(2, 3, D_IN)
    bare = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), bare)
    with state.applied({}):
        assert torch.equal(layer(x), bare)
    with state.applied({"another": update(2, (1, 1))}):
        assert torch.equal(layer(x), bare)


def test_a_row_with_zero_gates_gets_exactly_the_base():
    layer, state = install_on(nn.Linear(D_IN, D_OUT))
    x, change = torch.randn(2, 3, D_IN), update(4, (2, 1))
    change.gates[0] = 0
    with state.applied({"layer": change}):
        y = layer(x)
    assert torch.equal(y[0], layer(x)[0])
    assert not torch.equal(y[1], layer(x)[1])


def test_gates_are_gone_after_a_failed_forward():
    _, state = install_on(nn.Linear(D_IN, D_OUT))
    with pytest.raises(KeyError), state.applied({"layer": update(2, (1, 1))}):
        raise KeyError
    assert not state.updates


def test_two_callers_cannot_share_a_forward():
    _, state = install_on(nn.Linear(D_IN, D_OUT))
    change = {"layer": update(2, (1, 1))}
    with (
        state.applied(change),
        pytest.raises(RuntimeError, match="one thread"),
        state.applied(change),
    ):
        pass


class OddLinear(nn.Module):
    """A base that is no nn.Linear, has no weight, and computes in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = D_IN, D_OUT
        self.codes = nn.Buffer(torch.randint(-8, 8, (D_OUT, D_IN), dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.codes.to(x.dtype) / 8).T


def test_a_base_of_any_class():
    layer, state = install_on(OddLinear())
    x, change = torch.randn(2, 3, D_IN), update(4, (1, 1))
    bare = layer(x)
    with state.applied({"layer": change}):
        y = layer(x)
    assert torch.allclose(y, bare + (x @ change.down.T * change.gates) @ change.up, atol=1e-5)


def test_gates_keep_float32_in_a_half_precision_base():
    """1.001 is 1 in bfloat16; the product with `u` is rounded once, behind the float32 gate."""
    x = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    y = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    wide = GatedUpdate(one * 384, one, torch.full((1, 1, 1), 1.0035))
    # 384 * 1.0035 = 385.3, between bfloat16's 384 and 386; a bfloat16 gate would stay at 384.
    assert gated(y, x, wide).item() == 386
    assert gated(y, x, wide).dtype is torch.bfloat16


@pytest.mark.parametrize("grad", [True, False])
def test_the_input_stays_as_it_was(grad):
    """The sum is written over the base's output, never over what others may hold."""
    layer, state = install_on(nn.Linear(D_IN, D_OUT))
    x, change = torch.randn(2, 3, D_IN), update(4, (2, 1))
    before, weight = x.clone(), layer.weight.detach().clone()
    with torch.set_grad_enabled(grad), state.applied({"layer": change}):
        first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert torch.equal(layer.weight, weight)


def test_a_base_whose_output_is_not_contiguous():
    class Transposed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).transpose(0, 1).contiguous().transpose(0, 1)

    layer, state = install_on(Transposed(D_IN, D_OUT))
    x, change = torch.randn(2, 3, D_IN), update(4, (2, 1))
    bare = layer(x)
    assert not bare.is_contiguous()
    with torch.no_grad(), state.applied({"layer": change}):
        y = layer(x)
    assert torch.allclose(y, bare + (x @ change.down.T * change.gates) @ change.up, atol=1e-5)


def test_no_value_is_asked_of_the_device():
    """Nothing has values on the meta device: whoever waits for one there fails."""
    experts = [
        {"layer": LoraWeights(torch.ones(rank, D_IN), torch.ones(rank, D_OUT), 0.5)}
        for rank in (2, 3, 4)
    ]
    for kind, rows in ((RowKind.TEXT, (3, 5)), (RowKind.PATCH, (12,))):
        layer, state = install_on(nn.Linear(D_IN, D_OUT, device="meta"))
        targets = {"layer": Target("layer", D_IN, D_OUT, kind)}
        stacks = MixtureStacks(experts, targets, torch.device("meta"))
        gates = torch.ones(3, 3, device="meta")
        text = stacks.text_updates(gates, None, (0, 2))
        updates = text or stacks.tower_updates(gates, (4, 4, 4), 4, (0, 2))
        with torch.no_grad(), state.applied(updates):
            y = layer(torch.ones(*rows, D_IN, device="meta"))
        assert y.shape == (*rows, D_OUT)


def test_gradients_reach_the_gates():
    layer, state = install_on(nn.Linear(D_IN, D_OUT).requires_grad_(False))
    change = update(4, (2, 1))
    change.gates.requires_grad_()
    with state.applied({"layer": change}):
        layer(torch.randn(2, 3, D_IN)).sum().backward()
    assert change.gates.grad is not None
    assert bool((change.gates.grad != 0).all())


def test_compiles_without_a_break_and_not_once_per_active_set():
    """The updates are arguments of what is compiled, so their ranks are dynamic shapes."""
    model = nn.Sequential(nn.Linear(D_IN, D_OUT), nn.ReLU(), nn.Linear(D_OUT, D_IN))
    targets = [
        Target("0", D_IN, D_OUT, RowKind.TEXT),
        Target("2", D_OUT, D_IN, RowKind.TEXT),
    ]
    state = install(model, targets)

    def forward(x, updates):
        with state.applied(updates):
            return model(x)

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(forward, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, D_IN)
    with torch.no_grad():
        for rank in (0, 8, 16, 24, 3, 40, 56, 0, 11, 88, 5, 32):
            first = GatedUpdate(torch.randn(rank, D_IN), torch.randn(rank, D_OUT), torch.rand(rank))
            second = GatedUpdate(first.up, first.down, first.gates)
            updates = {"0": first, "2": second} if rank else {}
            assert torch.allclose(compiled(x, updates), forward(x, updates), atol=1e-6)
    # The bare base, the first rank, and every other rank.
    assert counter.frame_count == 3


def test_install_replaces_forwards_and_nothing_else():
    base = tiny.tiny_base()
    before = set(base.state_dict())
    model = tiny.GatedModel(base, tokenizer=None, base_digest="")
    assert set(base.state_dict()) == before
    for name in model.targets:
        assert isinstance(base.get_submodule(name).forward, GatedForward)
    assert "lm_head" not in model.targets
