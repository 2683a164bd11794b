"""Muon against torch's own, and which parameters it takes."""

from copy import deepcopy as copied

import pytest
import torch
from torch import nn

from training.miniature.muon import Muon, MuonAdamW, orthogonalised


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)], ids=["wide", "tall", "square"])
def test_steps_are_those_of_torch_up_to_its_bfloat16(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(2, *shape), torch.randn(3, 2, *shape)
    ours = [nn.Parameter(matrix.clone()) for matrix in start]
    theirs = [nn.Parameter(matrix.clone()) for matrix in start]
    muon = Muon(ours, lr=0.02)
    reference = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for pair in gradients:
        for parameters, optimiser in ((ours, muon), (theirs, reference)):
            for parameter, gradient in zip(parameters, pair, strict=True):
                parameter.grad = gradient.clone()
            optimiser.step()
    for our, their, begun in zip(ours, theirs, start, strict=True):
        moved = (their - begun).norm()
        assert moved > 0.2
        assert (our - their).norm() < 0.02 * moved


def test_singular_values_come_near_one_and_their_vectors_stay():
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, 40)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    # In the basis of their own singular vectors they are diagonal.
    values = u.mT @ orthogonalised(matrices) @ v.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-4


class Learner(nn.Module):
    """A tied head, a linear layer, a norm, and a layer that does not learn."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layer = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight


def test_muon_takes_the_matrices_of_linear_layers_and_adamw_the_rest():
    learner, thrown_away = Learner(), nn.Linear(8, 3)
    optimiser = MuonAdamW(learner, thrown_away)
    parameters = [*learner.parameters(), *thrown_away.parameters()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in parameters]
    optimiser.step(1e-2)
    changed = {
        id(parameter)
        for parameter, old in zip(parameters, before, strict=True)
        if not torch.equal(parameter, old)
    }
    assert changed == {id(p) for p in parameters if p.requires_grad}
    assert all(p.grad is None for p in parameters if p.requires_grad)
    state = optimiser.state_dict()
    assert len(state["muon"]["state"]) == 1
    assert len(state["adamw"]["state"]) == len(changed) - 1


def test_both_go_on_from_their_moments():
    torch.manual_seed(0)
    learner = nn.Linear(4, 4)
    gradients = torch.randn(2, 4, 4)

    def step(module, optimiser, gradient):
        module.weight.grad, module.bias.grad = gradient.clone(), gradient[0].clone()
        optimiser.step(1e-2)

    optimiser = MuonAdamW(learner)
    step(learner, optimiser, gradients[0])
    copy = nn.Linear(4, 4)
    copy.load_state_dict(learner.state_dict())
    resumed = MuonAdamW(copy)
    resumed.load_state_dict(copied(optimiser.state_dict()))
    for module, its in ((learner, optimiser), (copy, resumed)):
        step(module, its, gradients[1])
    assert torch.equal(copy.weight, learner.weight)
    assert torch.equal(copy.bias, learner.bias)


def test_a_state_of_another_optimiser_is_refused_with_what_to_do():
    learner = nn.Linear(4, 4)
    left = torch.optim.AdamW(learner.parameters()).state_dict()
    with pytest.raises(ValueError, match="another optimiser: remove its folder, or begin another"):
        MuonAdamW(learner).load_state_dict(left)
