"""What is accepted as an expert, and what is refused for which reason; from PEFT's own files."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from executor_service.core import GateVector
from executor_service.model.adapters import WEIGHTS_FILE, Adapter, adapter_digest, read_adapter
from executor_service.model.experts import ExpertLocation, LoadedExpert
from executor_service.model.loading import load_expert, read_expert
from service_chassis.errors import DataLoss, FailedPrecondition, InvalidArgument, ServiceError
from tests.unit.executor_service.model import tiny
from tests.unit.executor_service.model.tiny import AdapterRecipe

Tensors = dict[str, torch.Tensor]
# 3 layers of 7 linears, and 3 modules of the tower.
MODULES = 24
KEYS = 2 * MODULES
LLM = "base_model.model.model.language_model."
Q_PROJ = f"{LLM}layers.0.self_attn.q_proj"
DOWN_PROJ = f"{LLM}layers.2.mlp.down_proj"
# What a remedy looks like: the last clause tells someone to do something.
REMEDY = re.compile(r"[;,.] (train|save|load|copy|convert|serve|move|put|it needs) ?[^;]*\.$", re.I)


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return tiny.write_adapter(tmp_path_factory.mktemp("pristine"), AdapterRecipe())


@pytest.fixture
def adapter(pristine, tmp_path) -> Path:
    """A good adapter that a test may spoil."""
    for file in ("adapter_config.json", WEIGHTS_FILE):
        (tmp_path / file).write_bytes((pristine / file).read_bytes())
    return tmp_path


def edit_tensors(directory: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Changes the weights, in place or by what `change` returns."""
    tensors = load_file(directory / WEIGHTS_FILE)
    tensors = change(tensors) or tensors
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, directory / WEIGHTS_FILE
    )


def load(model, directory: Path, **options: bool) -> LoadedExpert:
    return load_expert(model, ExpertLocation("expert", directory), **options)


def refusal(model, directory: Path) -> ServiceError:
    """The error of loading, which must name a remedy and none of the file's own words."""
    with pytest.raises(ServiceError) as caught:
        load(model, directory)
    error = caught.value
    assert REMEDY.search(error.message), error.message
    assert str(directory) not in f"{error.message} {error.metadata}"
    return error


def counts(error: ServiceError) -> tuple[int, int, int]:
    return tuple(int(error.metadata[name]) for name in ("matched_modules", "modules", "keys"))


def test_a_good_adapter_is_accepted_and_moves_the_output(model, adapter):
    expert = load(model, adapter)
    assert (expert.matched_modules, expert.rank, expert.targets_vision) == (MODULES, 4, True)
    data = [(adapter / name).read_bytes() for name in ("adapter_config.json", WEIGHTS_FILE)]
    assert expert.identity.digest == adapter_digest(*data)
    experts = model.expert_set([expert])
    pixels, row = tiny.screen(1, 2), tiny.prompt(2, [7, 8])
    on = tiny.gated_logits(model, experts, GateVector((1.0,)), row, pixels)
    off = tiny.gated_logits(model, experts, GateVector((0.0,)), row, pixels)
    assert tiny.relative_error(on, off) > 0.01


def test_identity_is_the_content_and_the_generation_and_never_the_name(model, adapter):
    first = read_expert(model, ExpertLocation("a", adapter), generation=1).identity
    again = read_expert(model, ExpertLocation("b", adapter), generation=2).identity
    assert (first.digest, first.generation) == (again.digest, again.generation - 1)
    edit_tensors(adapter, lambda tensors: {key: t * 2 for key, t in tensors.items()})
    other_weights = read_expert(model, ExpertLocation("a", adapter)).identity
    tiny.edit_config(adapter, lora_alpha=7)
    other_config = read_expert(model, ExpertLocation("a", adapter)).identity
    assert len({first.digest, other_weights.digest, other_config.digest}) == 3


# --- refused by the config --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "DORA"),
        ({"bias": "all"}, "LORA_BIAS"),
        ({"bias": "lora_only"}, "LORA_BIAS"),
        ({"lora_bias": True}, "LORA_BIAS"),
        ({"modules_to_save": ["lm_head"]}, "MODULES_TO_SAVE"),
        ({"init_lora_weights": "pissa"}, "BASE_CHANGING_INIT"),
        ({"init_lora_weights": "pissa_niter_16"}, "BASE_CHANGING_INIT"),
        ({"init_lora_weights": "olora"}, "BASE_CHANGING_INIT"),
        ({"init_lora_weights": "loftq"}, "BASE_CHANGING_INIT"),
        ({"init_lora_weights": "corda"}, "BASE_CHANGING_INIT"),
        ({"init_lora_weights": "of_tomorrow"}, "BASE_CHANGING_INIT"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "UNSUPPORTED_FIELD"),
        ({"trainable_token_indices": [1]}, "UNSUPPORTED_FIELD"),
        ({"of_tomorrow": {"x": 1}}, "UNSUPPORTED_FIELD"),
        ({"peft_type": "LOHA"}, "BAD_ADAPTER_CONFIG"),
        ({"lora_alpha": float("nan")}, "BAD_ADAPTER_CONFIG"),
        ({"lora_alpha": 0}, "BAD_ADAPTER_CONFIG"),
        ({"r": 0}, "BAD_ADAPTER_CONFIG"),
        ({"r": "8"}, "BAD_ADAPTER_CONFIG"),
        ({"r": 4096}, "RANK_TOO_LARGE"),
        ({"rank_pattern": {"(a+)+b": 4}}, "BAD_ADAPTER_CONFIG"),
        ({"rank_pattern": {"(.|.)" * 40 + "X": 4}}, "BAD_ADAPTER_CONFIG"),
        ({"rank_pattern": {"((.|.)|.)" * 8: 4}}, "BAD_ADAPTER_CONFIG"),
        ({"rank_pattern": {"q_proj": 100_000}}, "RANK_TOO_LARGE"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "BAD_ADAPTER_CONFIG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, *value.items())),
)
def test_a_config_that_is_not_plain_lora_is_refused(model, adapter, change, reason):
    tiny.edit_config(adapter, **change)
    error = refusal(model, adapter)
    assert isinstance(error, InvalidArgument)
    assert error.reason == reason
    if not reason.startswith("UNSUPPORTED"):
        assert error.metadata["field"] in change or "lora_bias" in change


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_an_initialisation_that_leaves_the_base_alone_is_accepted(model, adapter, init):
    tiny.edit_config(adapter, init_lora_weights=init)
    assert load(model, adapter).matched_modules == MODULES


def test_an_unknown_field_is_not_repeated_unless_it_is_an_identifier(model, adapter):
    tiny.edit_config(adapter, **{"John Doe, born 1960": True})
    assert "John" not in str(refusal(model, adapter).metadata)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(model, adapter, data):
    (adapter / "adapter_config.json").write_bytes(data)
    assert refusal(model, adapter).reason == "BAD_ADAPTER_CONFIG"


# --- refused by the keys ------------------------------------------------------------------------


def pair(module: str, rank: int = 4, d_in: int = 64, d_out: int = 64) -> Tensors:
    return {
        f"{module}.lora_A.weight": torch.ones(rank, d_in),
        f"{module}.lora_B.weight": torch.ones(d_out, rank),
    }


def test_one_unmatched_module_is_enough_to_refuse(model, adapter):
    edit_tensors(adapter, lambda tensors: tensors | pair(f"{LLM}layers.3.self_attn.q_proj"))
    error = refusal(model, adapter)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "UNMATCHED_KEYS"
    assert counts(error) == (MODULES, MODULES + 1, KEYS + 2)


@pytest.mark.parametrize("key", [f"{Q_PROJ}.lora_C.weight", f"{Q_PROJ}.weight", "unknown"])
def test_one_unmatched_key_is_enough_to_refuse(model, adapter, key):
    edit_tensors(adapter, lambda tensors: tensors | {key: torch.ones(2)})
    error = refusal(model, adapter)
    assert error.reason == "UNMATCHED_KEYS"
    assert counts(error) == (MODULES, MODULES + 1, KEYS + 1)


def test_an_adapter_of_another_architecture_matches_nothing(model, adapter):
    edit_tensors(
        adapter,
        lambda tensors: {key.replace("model.", "transformer."): t for key, t in tensors.items()},
    )
    error = refusal(model, adapter)
    assert error.reason == "UNMATCHED_KEYS"
    assert counts(error) == (0, MODULES, KEYS)


def test_an_empty_file_matches_nothing(model, adapter):
    save_file({}, adapter / WEIGHTS_FILE)
    error = refusal(model, adapter)
    assert error.reason == "UNMATCHED_KEYS"
    assert counts(error) == (0, 0, 0)


def test_a_module_that_the_config_names_must_be_there(model, adapter):
    edit_tensors(adapter, lambda tensors: {k: t for k, t in tensors.items() if DOWN_PROJ not in k})
    error = refusal(model, adapter)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "INCOMPLETE_ADAPTER"
    assert error.metadata == {"matched_modules": str(MODULES - 1), "missing_modules": "1"}


@pytest.mark.parametrize(
    "choice",
    [
        {"exclude_modules": ["layers.1.mlp.up_proj", "visual.patch_embed.proj"]},
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": r".*\.(q_proj|attn\.proj)"},
    ],
    ids=str,
)
def test_the_modules_that_the_config_chooses_are_those_that_peft_makes(model, tmp_path, choice):
    """So a whole adapter is never called incomplete, and one module less is."""
    chosen = {"target_modules": [*tiny.LLM_LINEARS, *tiny.VISION_MODULES], **choice}
    config = LoraConfig(r=2, init_lora_weights=False, **chosen)
    with tiny.peft_warnings():
        adapted = get_peft_model(tiny.tiny_base(), config)
    adapted.save_pretrained(tmp_path)
    made = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert load(model, tmp_path).weights.keys() == made
    if isinstance(chosen["target_modules"], str):
        return  # An expression from a stranger's file is not evaluated.
    lost = min(made)
    edit_tensors(tmp_path, lambda tensors: {k: t for k, t in tensors.items() if lost not in k})
    assert refusal(model, tmp_path).metadata["missing_modules"] == "1"


def test_half_a_pair_is_refused(model, adapter):
    half = f"{Q_PROJ}.lora_B.weight"
    edit_tensors(adapter, lambda tensors: {k: t for k, t in tensors.items() if k != half})
    error = refusal(model, adapter)
    assert error.reason == "UNPAIRED_KEYS"
    assert counts(error) == (MODULES, MODULES, KEYS - 1)


def test_one_module_under_two_names_is_refused(model, adapter):
    edit_tensors(
        adapter, lambda tensors: tensors | pair("base_model.model.model.layers.0.self_attn.q_proj")
    )
    error = refusal(model, adapter)
    assert error.reason == "AMBIGUOUS_KEYS"
    assert counts(error) == (MODULES + 1, MODULES + 1, KEYS + 2)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (f"{Q_PROJ}.lora_magnitude_vector", "DORA"),
        (f"{Q_PROJ}.lora_magnitude_vector.weight", "DORA"),
        (f"{Q_PROJ}.lora_B.bias", "LORA_BIAS"),
        (f"{Q_PROJ}.bias", "LORA_BIAS"),
        ("base_model.model.lm_head.lora_A.weight", "EMBEDDING_OR_HEAD"),
        ("base_model.model.lm_head.base_layer.weight", "EMBEDDING_OR_HEAD"),
        ("base_model.model.lm_head.weight", "EMBEDDING_OR_HEAD"),
        (f"{LLM}embed_tokens.lora_embedding_A", "EMBEDDING_OR_HEAD"),
        (f"{LLM}embed_tokens.weight", "EMBEDDING_OR_HEAD"),
        (f"{Q_PROJ}.modules_to_save.weight", "MODULES_TO_SAVE"),
    ],
)
def test_a_key_of_an_unsupported_feature_is_refused_even_if_the_config_hides_it(
    model, adapter, key, reason
):
    edit_tensors(adapter, lambda tensors: tensors | {key: torch.ones(64, 4)})
    error = refusal(model, adapter)
    assert isinstance(error, InvalidArgument)
    assert error.reason == reason


# --- refused by the weights ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "shape"),
    [("A", (4, 65)), ("A", (5, 64)), ("A", (4, 64, 1)), ("B", (63, 4)), ("B", (64, 5)), ("B", ())],
)
def test_other_shapes_are_refused(model, adapter, side, shape):
    edit_tensors(
        adapter, lambda tensors: tensors | {f"{Q_PROJ}.lora_{side}.weight": torch.ones(shape)}
    )
    error = refusal(model, adapter)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "ADAPTER_SHAPES"
    assert error.metadata["module"] == Q_PROJ.removeprefix("base_model.model.")
    assert error.metadata["expected_a"] == "(4, 64)"
    assert error.metadata["expected_b"] == "(64, 4)"
    assert error.metadata[side.lower()] == str(shape)


def test_a_rank_that_the_config_does_not_declare_is_refused(model, adapter):
    """It would get the wrong scaling in silence."""
    tiny.edit_config(adapter, rank_pattern={"q_proj": 2})
    assert refusal(model, adapter).reason == "ADAPTER_SHAPES"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["A", "B"])
def test_one_weight_that_is_not_finite_is_refused(model, adapter, side, value):
    def spoil(tensors: Tensors) -> None:
        tensors[f"{DOWN_PROJ}.lora_{side}.weight"][1, 2] = value

    edit_tensors(adapter, spoil)
    error = refusal(model, adapter)
    assert isinstance(error, DataLoss)
    assert error.reason == "WEIGHTS_NOT_FINITE"


def test_weights_that_overflow_the_models_dtype_are_refused(model, adapter):
    edit_tensors(adapter, lambda tensors: {key: t * 1e6 for key, t in tensors.items()})
    with pytest.raises(FailedPrecondition) as caught:
        read_adapter(adapter, model.targets, torch.float16)
    assert caught.value.reason == "ADAPTER_OVERFLOW"


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_no_op_adapter_is_refused_unless_allowed(model, adapter, side):
    def blank(tensors: Tensors) -> None:
        for key, tensor in tensors.items():
            if f"lora_{side}" in key:
                tensor.zero_()

    edit_tensors(adapter, blank)
    error = refusal(model, adapter)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "NO_OP_ADAPTER"
    assert load(model, adapter, allow_no_op=True).matched_modules == MODULES


def test_one_module_that_does_something_is_enough(model, adapter):
    def blank(tensors: Tensors) -> None:
        for key, tensor in tensors.items():
            if "lora_B" in key and DOWN_PROJ not in key:
                tensor.zero_()

    edit_tensors(adapter, blank)
    assert load(model, adapter).matched_modules == MODULES


# --- refused by the probe -----------------------------------------------------------------------


def test_weights_too_small_to_move_the_output_are_refused(model, adapter):
    edit_tensors(adapter, lambda tensors: {key: t * 1e-12 for key, t in tensors.items()})
    location = ExpertLocation("expert", adapter)
    assert read_expert(model, location).matched_modules == MODULES
    error = refusal(model, adapter)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "NO_EFFECT"


def test_weights_that_overflow_the_output_are_refused(model, adapter):
    edit_tensors(adapter, lambda tensors: {key: t * 1e30 for key, t in tensors.items()})
    error = refusal(model, adapter)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "ADAPTER_OVERFLOW"


@pytest.mark.parametrize(
    "module", ["visual.patch_embed.proj", "visual.deepstack_merger_list.0.linear_fc2"]
)
def test_the_probe_sees_an_expert_that_adapts_the_tower_alone(model, tmp_path, module):
    expert = load(model, tiny.write_adapter(tmp_path, AdapterRecipe(llm=(), vision=(module,))))
    assert (expert.matched_modules, expert.targets_vision) == (1, True)


# --- refused by the base ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "ours", "fits"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", False),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen/qwen3-vl-8b-instruct", True),
        ("Qwen/Qwen3-VL-8B-Instruct", None, True),
        ("/srv/models/base", "Qwen/Qwen3-VL-8B-Instruct", True),
        (None, "Qwen/Qwen3-VL-8B-Instruct", True),
    ],
)
def test_another_base_by_name_is_refused(model, adapter, declared, ours, fits):
    tiny.edit_config(adapter, base_model_name_or_path=declared)

    def read() -> Adapter:
        return read_adapter(adapter, model.targets, torch.float32, base_name=ours)

    if fits:
        assert len(read().weights) == MODULES
        return
    with pytest.raises(FailedPrecondition) as caught:
        read()
    assert caught.value.reason == "OTHER_BASE"
    assert REMEDY.search(caught.value.message)


def test_another_base_by_digest_is_refused(model, adapter):
    (adapter / "expert.json").write_text(json.dumps({"base_digest": "f" * 64}))
    error = refusal(model, adapter)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "OTHER_BASE"
    (adapter / "expert.json").write_text(json.dumps({"base_digest": model.base_digest}))
    assert load(model, adapter).matched_modules == MODULES


# --- refused by the file ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pkl"])
def test_pickles_are_refused_and_never_opened(model, adapter, name, monkeypatch):
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr("pickle.load", opened)
    (adapter / WEIGHTS_FILE).rename(adapter / name)
    error = refusal(model, adapter)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "PICKLED_ADAPTER"


@pytest.mark.parametrize("kept", [0, 4, 8, 200, -1])
def test_a_truncated_file_is_refused(model, adapter, kept):
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:kept])
    error = refusal(model, adapter)
    assert isinstance(error, DataLoss)
    assert error.reason == "CORRUPT_ADAPTER"


def test_appended_bytes_are_refused(model, adapter):
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes() + b"PK")
    assert refusal(model, adapter).reason == "CORRUPT_ADAPTER"


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS_FILE])
def test_a_missing_file_is_refused(model, adapter, name):
    (adapter / name).unlink()
    error = refusal(model, adapter)
    assert (error.reason, error.metadata) == ("ADAPTER_FILE_MISSING", {"file": name})


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_no_regular_file_is_refused_and_not_kept_open(model, adapter, make):
    (adapter / WEIGHTS_FILE).unlink()
    make(adapter / WEIGHTS_FILE)
    before = len(os.listdir("/proc/self/fd"))
    assert refusal(model, adapter).reason == "NOT_A_FILE"
    assert len(os.listdir("/proc/self/fd")) == before


def test_weights_that_are_no_floats_are_refused(model, adapter):
    edit_tensors(adapter, lambda tensors: {key: t.to(torch.int8) for key, t in tensors.items()})
    assert refusal(model, adapter).reason == "UNSUPPORTED_DTYPE"


# --- accepted: the prefixes of old and new --------------------------------------------------------

SPELLINGS = {
    "now": {},
    "transformers 4.51": {
        "model.language_model.layers.": "model.layers.",
        "model.visual.": "visual.",
    },
    "language model inside": {
        "model.language_model.": "language_model.model.",
        "model.visual.": "visual.",
    },
    "the inner model's own": {
        "model.language_model.": "language_model.",
        "model.visual.": "visual.",
    },
    "the text model's own": {"model.language_model.layers.": "layers."},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_prefixes_of_old_and_new_transformers_are_accepted(model, tmp_path, spelling, prefix):
    """`target_modules` and patterns are spelled like the keys, as full paths."""

    def respell(name: str) -> str:
        for now, old in SPELLINGS[spelling].items():
            name = old + name.removeprefix(now) if name.startswith(now) else name
        return name

    patterns = {f"model.language_model.layers.{layer}.mlp.up_proj": 2 for layer in range(3)}
    patterns |= dict.fromkeys(tiny.VISION_MODULES, 3)
    tiny.write_adapter(tmp_path, AdapterRecipe(rank_pattern=patterns, alpha_pattern=patterns))
    expected = read_adapter(tmp_path, model.targets, torch.float32)
    head = "base_model.model."
    edit_tensors(
        tmp_path,
        lambda tensors: {prefix + respell(key.removeprefix(head)): t for key, t in tensors.items()},
    )
    tiny.edit_config(
        tmp_path,
        target_modules=[respell(name) for name in expected.weights],
        rank_pattern={respell(name): rank for name, rank in patterns.items()},
        alpha_pattern={respell(name): alpha for name, alpha in patterns.items()},
    )
    found = load(model, tmp_path)
    assert found.weights.keys() == expected.weights.keys()
    for name, weights in expected.weights.items():
        assert torch.equal(found.weights[name].down, weights.down)
        assert torch.equal(found.weights[name].up, weights.up)
        assert found.weights[name].scale == weights.scale
    # Completeness is judged in the file's own spelling too.
    edit_tensors(
        tmp_path, lambda tensors: {k: t for k, t in tensors.items() if "2.mlp.up" not in k}
    )
    assert refusal(model, tmp_path).metadata["missing_modules"] == "1"
