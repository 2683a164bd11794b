"""One expert by PEFT and transformers' Trainer: its layout, its files, and that it goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from executor_service.model.experts import ExpertLocation
from executor_service.model.gated import GatedModel
from executor_service.model.loading import load_expert
from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from tests.support.events import read_scalars
from tests.support.experts import plain_base
from tests.support.tiny_run import TinyRun, records
from training.conversations import Conversations
from training.data.records import Turn, write_records
from training.expert import collate, row_tensors, system_prompt, train_expert, write_expert
from training.lora import lora_config
from training.losses import answer_loss
from training.run_config import RunConfig
from training.trainer_reports import newest_state

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
LLM_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def own(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of one expert, beside the images of all."""
    path = tiny.records.parent / "clicker.jsonl"
    write_records(path, [row for row in records(path.parent) if row.adapter == "clicker"])
    return path


def config(tiny: TinyRun, own: Path, out: Path, **changes: Any) -> RunConfig:
    values = {
        "records": own,
        "lora": {"name": "clicker", "label": 3, "rank": 4, "system_prompt": "You click."},
        "rates": {"expert": 1e-2},
        "router": {},
        **changes,
    }
    return tiny.config(out, **values)


@pytest.fixture(scope="module")
def trained(tiny: TinyRun, own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_expert(config(tiny, own, tmp_path_factory.mktemp("expert") / "run")).directory


def stopping_after(last: int) -> Callable[[int, int], None]:
    def progress(done: int, _: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    return progress


def test_the_executor_loads_it(tiny: TinyRun, trained: Path) -> None:
    model = GatedModel.load(tiny.base, device="cpu", dtype=torch.float32)
    expert = load_expert(model, ExpertLocation("clicker", trained))
    assert (expert.label, expert.system_prompt) == (3, "You click.")
    assert expert.task_types == ("clicker",)
    assert (expert.rank, expert.targets_vision) == (4, True)
    assert {(pair.rank, pair.scale) for pair in expert.weights.values()} == {(4, 2.0), (2, 2.0)}
    about = json.loads((trained / "expert.json").read_text())
    assert about["base_digest"] == model.base_digest


def test_it_is_laid_out_as_the_users(tiny: TinyRun, trained: Path) -> None:
    stated = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    names = [name for name, _ in plain_base(tiny.base).named_modules()]
    language = [name for name in names if name.rsplit(".", 1)[-1] in LLM_LINEARS]
    vision = [f"model.visual.blocks.{at}.attn.proj" for at in range(2)]
    vision.append("model.visual.patch_embed.proj")
    assert stated["target_modules"] == sorted([*language, *vision])
    assert len(language) == 14
    assert (stated["r"], stated["lora_alpha"]) == (4, 8)
    assert stated["rank_pattern"] == dict.fromkeys(vision, 2)
    assert stated["alpha_pattern"] == dict.fromkeys(vision, 4)
    # Nothing of this machine.
    assert stated["base_model_name_or_path"] is None
    assert str(tiny.base) not in (trained / "adapter" / "adapter_config.json").read_text()
    files = sorted(path.name for path in (trained / "adapter").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_hub_is_not_asked(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    hub = "peft.utils.save_and_load.check_file_exists_on_hf_hub"
    monkeypatch.setattr(hub, lambda *given: asked.append(given))
    base = plain_base(tiny.base)
    adapted = get_peft_model(base, lora_config(base, 4))
    adapted.peft_config["default"].base_model_name_or_path = "Qwen/Qwen3-VL-8B-Instruct"
    write_expert(adapted, tmp_path / "clicker", {}, "Qwen/Qwen3-VL-8B-Instruct")
    assert (tmp_path / "clicker" / "adapter" / "adapter_model.safetensors").exists()
    assert asked == []


def test_it_learns_the_answers(tiny: TinyRun, own: Path, tmp_path: Path) -> None:
    more = {"steps": 10, "batch_rows": 6, "rows_per_forward": 6, "save_every": 100}
    steps: list[tuple[int, int]] = []
    late = train_expert(
        config(tiny, own, tmp_path / "late", **more),
        progress=lambda done, total: steps.append((done, total)),
    )
    early = train_expert(config(tiny, own, tmp_path / "early", **{**more, "steps": 1}))
    assert late.loss < early.loss - 0.5
    assert late.modules == 17
    assert steps == [(step, 10) for step in range(1, 11)]
    told = read_scalars(tmp_path / "late" / "events")
    assert set(told) == {"loss/answer", "loss/gradient_norm", "rate/expert"}
    assert told["loss/answer"][10] == pytest.approx(late.loss, rel=1e-5)
    assert list(told["loss/answer"]) == list(range(1, 11))


@pytest.mark.parametrize("last", [1, 3])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tiny: TinyRun, own: Path, trained: Path, tmp_path: Path, last: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_expert(config(tiny, own, tmp_path), progress=stopping_after(last))
    again = train_expert(config(tiny, own, tmp_path)).directory
    for file in ("expert.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (again / file).read_bytes() == (trained / file).read_bytes()


def test_a_state_that_was_not_written_whole_is_passed_over(tmp_path: Path) -> None:
    assert newest_state(tmp_path / "state") is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    assert newest_state(tmp_path) is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert newest_state(tmp_path) == str(tmp_path / "checkpoint-10")


def test_recomputed_layers_learn_the_same(
    tiny: TinyRun, own: Path, trained: Path, tmp_path: Path
) -> None:
    again = train_expert(config(tiny, own, tmp_path, gradient_checkpointing=True)).directory
    one, other = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (trained, again)
    )
    for name, part in one.items():
        assert torch.allclose(part, other[name], atol=1e-4)


@torch.no_grad()
def test_its_loss_is_that_of_the_gated_stages(tiny: TinyRun, own: Path) -> None:
    """Rows of two lengths in one batch, by transformers' own forward, against the gated model's."""
    model = GatedModel.load(tiny.base, device="cpu", dtype=torch.float32)
    rows = Conversations(
        [row for row in records(own.parent) if row.image in ("images/0.png", "images/1.png")],
        own.parent,
        ScreenReader(tiny.base),
        PromptBuilder(model.tokenizer),
        {"clicker": "You click.", "scroller": None},
    )
    pair = [rows[0], rows[2]]
    batch = collate([row_tensors(row, 2) for row in pair])
    assert len({len(row.instruction.prompt.ids) for row in pair}) == 2
    theirs = plain_base(tiny.base)(**batch).loss
    vision = model.encode_vision([row.screen for row in pair], None)
    logits = model.read([row.instruction.prompt for row in pair], vision)
    each = [answer_loss([part], [row.answer]) for part, row in zip(logits, pair, strict=True)]
    lengths = [len(row.answer) for row in pair]
    ours = sum(loss * n for loss, n in zip(each, lengths, strict=True)) / sum(lengths)
    assert float(theirs) == pytest.approx(float(ours), rel=1e-5)


def test_records_of_several_system_prompts(own: Path) -> None:
    [one, two, *_] = records(own.parent)
    old = dataclasses.replace(two, turns=(Turn("system", "Old rules."), *two.turns))
    with pytest.raises(ValueError, match="carry 2 system prompts"):
        system_prompt([one, old], None)
    assert system_prompt([one, old], "Mine.") == "Mine."
    assert system_prompt([old], None) == "Old rules."
    assert system_prompt([one], None) is None


def test_what_is_refused(tiny: TinyRun, own: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora\.name is not set"):
        train_expert(config(tiny, own, tmp_path, lora={"rank": 4}))
    lora = {"name": "dragger", "rank": 4}
    with pytest.raises(ValueError, match=r"names dragger: it has those of clicker, scroller"):
        train_expert(config(tiny, own, tmp_path / "a", records=tiny.records, lora=lora))
    assert not (tmp_path / "a").exists()


def test_what_is_no_number_is_not_written(tiny: TinyRun, own: Path, tmp_path: Path) -> None:
    wild = config(tiny, own, tmp_path, rates={"expert": 1e30})
    with pytest.raises(ArithmeticError, match=r"not finite.*lower rates\.expert"):
        train_expert(wild)
    assert not (tmp_path / "clicker").exists()


def test_of_a_data_set_it_learns_its_own_records(
    tiny: TinyRun, own: Path, trained: Path, tmp_path: Path
) -> None:
    of_all = train_expert(config(tiny, own, tmp_path, records=tiny.records)).directory
    for name in ("adapter/adapter_model.safetensors", "expert.json"):
        assert (of_all / name).read_bytes() == (trained / name).read_bytes()
