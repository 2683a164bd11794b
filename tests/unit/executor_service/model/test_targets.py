"""Which modules of a base may be adapted, whatever class they are of."""

import pytest
import torch
from torch import nn

from executor_service.core import GateVector
from executor_service.model.gated import GatedModel
from executor_service.model.targets import RowKind, find_targets
from tests.unit.executor_service.model import tiny
from tests.unit.executor_service.model.tiny import AdapterRecipe

Q_PROJ = "model.language_model.layers.1.self_attn.q_proj"


class CodedLinear(nn.Module):
    """Stands for a quantised linear: no nn.Linear, no weight of the base's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.step = float(linear.weight.abs().max()) / 127
        self.codes = nn.Buffer((linear.weight / self.step).round().to(torch.int8))

    @property
    def decoded(self) -> torch.Tensor:
        return self.codes.float() * self.step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.decoded.T


def test_all_linears_and_the_patch_embedding_and_nothing_else():
    base = tiny.tiny_base()
    targets = find_targets(base)
    linears = {
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert targets.keys() == linears | {"model.visual.patch_embed.proj"}
    for name, target in targets.items():
        weight = base.get_submodule(name).weight
        assert (target.d_out, target.d_in) == (weight.shape[0], weight[0].numel())
        assert (target.layer is not None) == (".language_model.layers." in name)
        assert (target.kind is RowKind.TEXT) == name.startswith("model.language_model.")
        assert (target.kind is RowKind.MERGED) == ("merger" in name)


@pytest.mark.parametrize(
    "changed",
    [{"stride": (1, 4, 4)}, {"padding": (0, 1, 0)}, {"dilation": (1, 2, 1)}, {"groups": 3}],
    ids=str,
)
def test_a_convolution_that_is_no_linear_on_patches_is_no_target(changed):
    base = tiny.tiny_base()
    for attribute, value in changed.items():
        setattr(base.model.visual.patch_embed.proj, attribute, value)
    assert "model.visual.patch_embed.proj" not in find_targets(base)


def test_a_base_linear_of_another_class_is_found_and_gated(tmp_path):
    """Coded weights under an expert give what the same weights give decoded."""
    coded, plain = tiny.tiny_base(), tiny.tiny_base()
    module = CodedLinear(coded.get_submodule(Q_PROJ))
    coded.set_submodule(Q_PROJ, module)
    plain.get_submodule(Q_PROJ).weight.data.copy_(module.decoded)
    directories = tiny.write_experts(tmp_path, {"a": AdapterRecipe()})
    pixels, prompt = tiny.screen(1, 2), tiny.prompt(2, [7, 8])
    logits = {}
    for name, base in {"coded": coded, "plain": plain}.items():
        model = GatedModel(base, tokenizer=None, base_digest="0" * 64)
        assert Q_PROJ in model.targets
        experts = tiny.load_set(model, directories)
        for gate in (0.0, 1.0):
            logits[name, gate] = tiny.gated_logits(
                model, experts, GateVector((gate,)), prompt, pixels
            )
    for gate in (0.0, 1.0):
        assert tiny.relative_error(logits["coded", gate], logits["plain", gate]) <= 1e-5
    assert tiny.relative_error(logits["coded", 0.0], logits["coded", 1.0]) > 0.01
