"""When the guard stops a run, and what flows back through the running marginals."""

from __future__ import annotations

import pytest
import torch

from training.losses import balance_loss
from training.marginals import GateMarginals, GatesCollapsed
from training.run_config import Guard

LABELS = torch.tensor([0.25, 0.75])
NAMES = ("calendar", "claim-window")
ROWS = 8


def run(marginals: GateMarginals, gates: list[float], steps: int, guard: Guard) -> int:
    """Steps until the guard stops the run."""
    for step in range(1, steps + 1):
        marginals.update(torch.tensor(gates))
        try:
            marginals.check(guard, NAMES, step)
        except GatesCollapsed:
            return step
    return 0


def test_gates_like_the_labels_never_stop_a_run():
    assert run(GateMarginals(LABELS, ROWS), [0.25, 0.75], 500, Guard(patience_steps=1)) == 0


def test_a_collapse_stops_it_after_the_patience_and_names_who_lost():
    marginals, guard = GateMarginals(LABELS, ROWS), Guard(collapse_below=0.5, patience_steps=4)
    # 0.95^14 is the first power below one half, and four such steps are waited for.
    assert run(marginals, [0.0, 1.0], 100, guard) == 17
    with pytest.raises(GatesCollapsed, match=r"calendar has 25\.0% of the records and gets 10\.5%"):
        marginals.check(guard, NAMES, 18)


def test_a_step_that_recovers_starts_the_count_again():
    marginals, guard = GateMarginals(LABELS, ROWS), Guard(collapse_below=0.5, patience_steps=3)
    marginals.running = torch.tensor([0.01, 0.99])
    marginals.check(guard, NAMES, 1)
    marginals.check(guard, NAMES, 2)
    marginals.running = LABELS.clone()
    marginals.check(guard, NAMES, 3)
    marginals.running = torch.tensor([0.01, 0.99])
    marginals.check(guard, NAMES, 4)
    marginals.check(guard, NAMES, 5)
    with pytest.raises(GatesCollapsed, match="by step 6"):
        marginals.check(guard, NAMES, 6)


def test_zero_never_stops():
    guard = Guard(collapse_below=0, patience_steps=1)
    assert run(GateMarginals(LABELS, ROWS), [0.0, 1.0], 300, guard) == 0


def test_an_expert_without_records_may_have_no_gates():
    marginals = GateMarginals(torch.tensor([1.0, 0.0]), ROWS)
    assert run(marginals, [1.0, 0.0], 100, Guard(patience_steps=1)) == 0


def test_the_value_is_the_running_one_and_the_slope_is_the_batchs():
    marginals = GateMarginals(LABELS, ROWS)
    logits = torch.tensor([3.0, 0.0], requires_grad=True)
    here = logits.softmax(dim=-1)
    seen = marginals.with_batch(here, here)
    assert torch.allclose(seen, 0.95 * LABELS + 0.05 * here)
    [slope] = torch.autograd.grad(balance_loss(seen, LABELS), [logits])
    # Too much of the first: down with it, in full.
    expected = torch.autograd.grad(
        ((-LABELS / seen.detach()) * logits.softmax(dim=-1)).sum(), [logits]
    )[0]
    assert torch.allclose(slope, expected)
    assert float(slope[0]) > 0 > float(slope[1])


def test_it_goes_on_from_a_state():
    one, guard = GateMarginals(LABELS, ROWS), Guard(collapse_below=0.5, patience_steps=20)
    run(one, [0.0, 1.0], 20, guard)
    other = GateMarginals(LABELS, ROWS)
    other.load_state_dict(one.state_dict())
    assert run(one, [0.0, 1.0], 50, guard) == run(other, [0.0, 1.0], 50, guard) == 13


@pytest.mark.parametrize("share", [0.013, 0.0055])
def test_a_rare_expert_that_gets_all_of_its_records_never_stops_a_run(share):
    labels = torch.tensor([share, *[(1 - share) / 6] * 6])
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        marginals = GateMarginals(labels, ROWS)
        for step in range(2000):
            drawn = torch.multinomial(labels, ROWS, replacement=True, generator=generator)
            marginals.update(torch.bincount(drawn, minlength=7) / ROWS)
            marginals.check(Guard(), [f"expert-{number}" for number in range(7)], step)


def test_a_rare_expert_that_gets_nothing_stops_it_later():
    labels = torch.tensor([0.01, 0.99])
    stopped = run(GateMarginals(labels, ROWS), [0.0, 1.0], 1000, Guard())
    # Its mean is over 200 steps: 0.995^460 is the first power below a tenth.
    assert stopped == 479
