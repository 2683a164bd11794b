"""Features: where they are taken, how they are pooled, and the spec that pins both down."""

import dataclasses
import json

import pytest
import torch

from executor_service.core import GateVector
from executor_service.model.decoder import Decoder
from executor_service.model.features import (
    TEXT_POOLINGS,
    VISION_POOLINGS,
    VISION_SOURCES,
    FeatureRow,
    FeatureSpec,
    checked,
    pool_text,
    pool_vision,
)
from executor_service.model.gated import Routing
from service_chassis.errors import Internal
from tests.unit.executor_service.model import tiny

HIDDEN, LAYERS, LEVELS = 64, 3, 2
TOLERANCE = 1e-5
# The template's tokens around the instruction's own, as `PromptBuilder.feature_ids` puts them.
HEAD, TAIL = (5, 6), (7, 8)
SPEC = FeatureSpec(
    text_layer=2,
    text_pooling="mean",
    vision_source="tower",
    vision_pooling="mean",
    text_dim=HIDDEN,
    vision_dim=HIDDEN,
    base_digest="0" * 64,
    template_version="user-turn-1",
)


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


def features(model, spec: FeatureSpec, instruction=(30, 31, 32), pixels=None):
    ids = (*HEAD, *instruction, *TAIL)
    span = (len(HEAD), len(HEAD) + len(instruction))
    [vision] = model.encode_vision([pixels or tiny.screen(2, 3)], None)
    [found] = model.features([FeatureRow(ids, span, vision)], spec)
    return found


def states_by_transformers(base, ids, pixels=None) -> list[torch.Tensor]:
    """Hidden states [T, hidden] behind 0, 1, 2, ... layers, seen by what comes after them."""
    language, seen = base.model.language_model, []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
        for module in (*language.layers, language.norm)
    ]
    try:
        with torch.no_grad():
            if pixels is None:
                base(input_ids=torch.tensor([ids]))
            else:
                tiny.reference_logits(base, ids, pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


# --- the layer index --------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_text_features_are_those_behind_exactly_that_many_layers(model, layer):
    spec = model.feature_spec(text_layer=layer)
    text = features(model, spec).text
    states = states_by_transformers(tiny.tiny_base(), (*HEAD, 30, 31, 32, *TAIL))
    means = [state[2:5].mean(dim=0) for state in states]
    for index, mean in enumerate(means):
        if index == layer:
            assert tiny.relative_error(text, mean) <= TOLERANCE
        else:
            assert tiny.relative_error(text, mean) > 0.01, f"layer {index} is told from {layer}"


@pytest.mark.parametrize("layer", [1, 2])
def test_the_index_is_that_of_transformers_hidden_states(model, layer):
    ids = torch.tensor([[*HEAD, 30, 31, 32, *TAIL]])
    with torch.no_grad():
        output = tiny.tiny_base()(input_ids=ids, output_hidden_states=True)
    text = features(model, model.feature_spec(text_layer=layer)).text
    for index, state in enumerate(output.hidden_states):
        error = tiny.relative_error(text, state[0, 2:5].mean(dim=0))
        assert (error <= TOLERANCE) == (index == layer)
        assert index == layer or error > 0.01


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_fused_features_are_the_image_tokens_behind_exactly_that_many_layers(model, layer):
    """DeepStack's additions are part of it: what counts is what the next layer would see."""
    pixels = tiny.screen(2, 3)
    fused = features(model, model.feature_spec(text_layer=layer, vision_source="fused"))
    row = tiny.prompt(6, [30, 31, 32, *TAIL], before=HEAD)
    states = states_by_transformers(tiny.tiny_base(), row, pixels)
    for index, state in enumerate(states):
        image = state[row.image_start : row.image_start + 6].mean(dim=0)
        error = tiny.relative_error(fused.vision, image)
        assert (error <= TOLERANCE) == (index == layer)
        assert index == layer or error > 0.01


def test_later_layers_do_not_run(model):
    language = model.base.model.language_model

    def ran(*_: object) -> None:
        raise AssertionError("a layer behind the hook ran")

    hook = language.layers[2].register_forward_pre_hook(ran)
    try:
        features(model, model.feature_spec(text_layer=2, vision_source="fused"))
    finally:
        hook.remove()


def test_hidden_states_of_all_layers_give_the_models_logits(model):
    pixels, row = tiny.screen(2, 3), tiny.prompt(6, [30, 31, 32])
    [vision] = model.encode_vision([pixels], None)
    language = model.base.model.language_model
    with torch.no_grad():
        hidden = Decoder(language).after(model.row(row, vision), LAYERS)
        logits = model.base.lm_head(language.norm(hidden))[0]
        expected = tiny.reference_logits(tiny.tiny_base(), row, pixels)
    assert tiny.relative_error(logits, expected) <= TOLERANCE


@pytest.mark.parametrize("source", VISION_SOURCES)
@pytest.mark.parametrize("pooling", TEXT_POOLINGS)
@pytest.mark.parametrize("vision_pooling", VISION_POOLINGS)
def test_rows_together_get_what_each_gets_alone(model, source, pooling, vision_pooling):
    spec = model.feature_spec(
        text_layer=2, text_pooling=pooling, vision_source=source, vision_pooling=vision_pooling
    )
    screens = [tiny.screen(2, 3), tiny.screen(1, 1, seed=1), tiny.screen(3, 2, seed=2)]
    asked = [
        FeatureRow((*HEAD, *instruction, *TAIL), (2, 2 + len(instruction)), vision)
        for instruction, vision in zip(
            [(30,), tuple(range(20, 40)), (40, 41)], model.encode_vision(screens, None), strict=True
        )
    ]
    together = model.features(asked, spec)
    for one, row in zip(together, asked, strict=True):
        [alone] = model.features([row], spec)
        assert tiny.relative_error(one.text, alone.text) <= TOLERANCE
        assert tiny.relative_error(one.vision, alone.vision) <= TOLERANCE


# --- pooling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_first_is_the_same_for_every_prompt_and_screen(model, layer):
    """Token 0 of a causal decoder sees itself alone, and it is always the template's."""
    spec = model.feature_spec(text_layer=layer, text_pooling="first", vision_source="fused")
    asked = [((30, 31, 32), tiny.screen(2, 3)), ((40,), tiny.screen(1, 2, seed=1))]
    asked.append((tuple(range(20, 60)), tiny.screen(3, 3, seed=2)))
    found = [features(model, spec, instruction, pixels) for instruction, pixels in asked]
    for other in found[1:]:
        assert tiny.relative_error(other.text, found[0].text) <= TOLERANCE
        assert tiny.relative_error(other.vision, found[0].vision) > 0.01


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_other_poolings_differ_between_instructions_and_not_between_screens(model, pooling):
    spec = model.feature_spec(text_layer=2, text_pooling=pooling)
    one = features(model, spec, (30, 31, 32))
    other = features(model, spec, (40, 31, 32))
    assert tiny.relative_error(other.text, one.text) > 0.01
    elsewhere = features(model, spec, (30, 31, 32), tiny.screen(1, 2, seed=1))
    assert torch.equal(elsewhere.text, one.text)
    assert tiny.relative_error(elsewhere.vision, one.vision) > 0.01


def test_pooling_takes_the_instructions_own_tokens():
    hidden = torch.arange(12.0).reshape(6, 2)
    assert pool_text(hidden, (2, 5), "mean").tolist() == [6, 7]
    assert pool_text(hidden, (2, 5), "last").tolist() == [8, 9]
    assert pool_text(hidden, (2, 5), "first").tolist() == [0, 1]


@pytest.mark.parametrize("span", [(2, 2), (3, 2), (-1, 2), (0, 7)])
@pytest.mark.parametrize("pooling", TEXT_POOLINGS)
def test_a_span_without_tokens_is_an_error(span, pooling):
    with pytest.raises(Internal) as caught:
        pool_text(torch.ones(6, 2), span, pooling)
    assert caught.value.reason == "EMPTY_FEATURE_SPAN"


# --- vision sources -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "levels"),
    [("tower", 1), ("deepstack", LEVELS), ("levels", 1 + LEVELS), ("fused", 1)],
)
@pytest.mark.parametrize(("pooling", "parts"), [("mean", 1), ("statistics", 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 2)])
def test_shapes_do_not_depend_on_the_screen(model, source, levels, pooling, parts, size):
    spec = model.feature_spec(text_layer=1, vision_source=source, vision_pooling=pooling)
    found = features(model, spec, pixels=tiny.screen(*size))
    assert found.text.shape == (spec.text_dim,) == (HIDDEN,)
    assert found.vision.shape == (spec.vision_dim,) == (parts * levels * HIDDEN,)
    assert found.text.dtype == found.vision.dtype == torch.float32


def test_tower_and_deepstack_are_the_means_of_the_towers_own_output(model):
    pixels, base = tiny.screen(2, 3), tiny.tiny_base()
    with torch.no_grad():
        output = base.model.visual(pixels.pixel_values, grid_thw=torch.tensor([pixels.grid_thw]))
    tower = features(model, model.feature_spec(text_layer=1)).vision
    assert tiny.relative_error(tower, output.pooler_output.mean(dim=0)) <= TOLERANCE
    levels = torch.cat([level.mean(dim=0) for level in output.deepstack_features])
    deepstack = features(model, model.feature_spec(text_layer=1, vision_source="deepstack")).vision
    assert tiny.relative_error(deepstack, levels) <= TOLERANCE
    assert tiny.relative_error(levels[:HIDDEN], levels[HIDDEN:]) > 0.01
    both = features(model, model.feature_spec(text_layer=1, vision_source="levels")).vision
    assert torch.equal(both, torch.cat([tower, deepstack]))


def test_statistics_are_mean_deviation_maximum_and_minimum_of_each_level():
    levels = torch.tensor([[1.0, 4.0], [3.0, 0.0]]), torch.tensor([[5.0, 5.0]])
    assert pool_vision(levels, "mean").tolist() == [2, 2, 5, 5]
    assert pool_vision(levels, "statistics").tolist() == [
        *(2, 2, 1, 2, 3, 4, 1, 0),
        *(5, 5, 0, 0, 5, 5, 5, 5),
    ]


def test_a_small_window_on_a_large_desktop_stands_out_in_the_statistics():
    desktop = torch.zeros(400, 1)
    desktop[7] = 1.0
    mean, deviation, largest, least = pool_vision((desktop,), "statistics").tolist()
    assert mean < 0.01 < deviation
    assert (largest, least) == (1, 0)


@pytest.mark.parametrize("source", VISION_SOURCES)
def test_features_are_those_of_the_bare_base_even_after_an_expert_ran(model, tmp_path, source):
    experts = tiny.load_set(model, tiny.write_experts(tmp_path, {"a": tiny.AdapterRecipe()}))
    spec = model.feature_spec(text_layer=2, vision_source=source)
    before = features(model, spec)
    row, pixels = tiny.prompt(6, [30]), tiny.screen(2, 3)
    tiny.gated_logits(model, experts, GateVector((1.0,)), row, pixels)
    after = features(model, spec)
    assert torch.equal(after.text, before.text)
    assert torch.equal(after.vision, before.vision)
    [adapted] = model.encode_vision([pixels], Routing(experts, (GateVector((1.0,)),)))
    asked = FeatureRow((*HEAD, 30, 31, 32, *TAIL), (2, 5), adapted)
    [under_gates] = model.features([asked], spec)
    assert tiny.relative_error(under_gates.vision, before.vision) > 0.01


def test_leftover_gates_are_an_error_and_not_features(model, tmp_path):
    experts = tiny.load_set(model, tiny.write_experts(tmp_path, {"a": tiny.AdapterRecipe()}))
    updates = experts.text_updates((GateVector((1.0,)),))
    [vision] = model.encode_vision([tiny.screen(1, 1)], None)
    with model.state.applied(updates):
        with pytest.raises(RuntimeError, match="applied already"):
            model.encode_vision([tiny.screen(1, 1)], None)
        with pytest.raises(RuntimeError, match="applied already"):
            model.features([FeatureRow((*HEAD, 30), (2, 3), vision)], SPEC)


@pytest.mark.parametrize(("text", "vision"), [(63, 64), (64, 128)])
def test_another_shape_than_the_spec_says_is_an_error(text, vision):
    with pytest.raises(Internal) as caught:
        checked(torch.zeros(text), torch.zeros(vision), SPEC)
    assert caught.value.reason == "FEATURES_SHAPE"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["text", "vision"])
def test_features_that_are_not_finite_are_an_error(side, value):
    parts = {"text": torch.zeros(HIDDEN), "vision": torch.zeros(HIDDEN)}
    parts[side][3] = value
    with pytest.raises(Internal) as caught:
        checked(**parts, spec=SPEC)
    assert caught.value.reason == "FEATURES_NOT_FINITE"


# --- the spec -----------------------------------------------------------------------------------

CHANGED = {
    "text_layer": 3,
    "text_pooling": "last",
    "vision_source": "fused",
    "text_dim": 65,
    "vision_dim": 65,
    "base_digest": "1" * 64,
    "template_version": "user-turn-2",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FeatureSpec)])
def test_the_digest_changes_with_every_field(field, monkeypatch):
    # There is one vision pooling so far.
    monkeypatch.setattr("executor_service.model.features.VISION_POOLINGS", ("mean", "max"))
    changed = dataclasses.replace(SPEC, **{field: (CHANGED | {"vision_pooling": "max"})[field]})
    assert changed.digest != SPEC.digest
    assert len(changed.digest) == 64


def test_the_digest_is_pinned():
    """Bundles and stored features carry it; another way to compute it would orphan them all."""
    assert SPEC.digest == "19fd0ea6e68459d14637c2c34370b89c6d245282e82fa9f9045f32d6ae9997b1"


def test_a_spec_survives_its_json():
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_layer": "2"}, "wrong type.*text_layer"),
        ({"text_layer": True}, "wrong type.*text_layer"),
        ({"base_digest": 3}, "wrong type.*base_digest"),
        ({"text_dim": None}, "wrong type.*text_dim"),
        ({"text_layer": 0}, "count from 1"),
        ({"vision_dim": 0}, "count from 1"),
        ({"text_pooling": "median"}, "text_pooling is one of"),
        ({"vision_source": "ears"}, "vision_source is one of"),
        ({"vision_pooling": "max"}, "vision_pooling is one of"),
        ({"more": 1}, "exactly these fields"),
    ],
    ids=str,
)
def test_a_spec_of_another_form_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        FeatureSpec.from_json(json.dumps(dataclasses.asdict(SPEC) | change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "3"])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(ValueError, match=r"exactly|Expecting"):
        FeatureSpec.from_json(text)


def test_a_layer_that_the_model_does_not_have_is_refused(model):
    with pytest.raises(ValueError, match="at most 3"):
        model.feature_spec(text_layer=4)
    with pytest.raises(ValueError, match="text_layer"):
        model.feature_spec(text_layer=0)
