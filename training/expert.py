"""One expert alone: a PEFT LoRA, by transformers' Trainer, on the records of its adapter.

Knows PEFT, the Trainer and an expert's files; knows no router and no other expert.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from executor_service.model.adapters import CONFIG_FILE
from executor_service.model.checkpoint import base_digest, base_name, load_base
from executor_service.model.experts import ABOUT_FILE, check_name
from executor_service.model.prompt import PromptBuilder
from executor_service.model.rows import rope_positions
from executor_service.model.screen import ScreenReader
from training.conversations import Conversation, Conversations
from training.data.records import Record, read_labelled
from training.events import Events
from training.lora import lora_config
from training.processes import on_cpu, this_process
from training.run_config import RunConfig
from training.run_file import digest_of
from training.trainer_reports import Progress, Reports, Tells, newest_state, step_of

STATE_FOLDER = "state"
_IGNORED = -100
_KEPT_STATES = 2


@dataclass(frozen=True)
class ExpertResult:
    """A trained expert.

    Attributes:
        directory: Holds `adapter/` as PEFT writes it, and `expert.json`.
        modules: How many modules it adapts.
        loss: Mean cross-entropy over the last stretch of training, in nats per token.
    """

    directory: Path
    modules: int
    loss: float


def train_expert(config: RunConfig, *, progress: Progress | None = None) -> ExpertResult:
    """Trains an expert, or goes on where a stopped run left off.

    Args:
        config: The run; `lora.name` is the expert's. Under torchrun every process is called with
            the same.
        progress: Called with (steps done, steps in all).

    Raises:
        ValueError: No name, no record of that name, more than one system prompt, or the folder
            holds another run.
        NotLoadable: The base cannot be used.
        ArithmeticError: What was learnt are no numbers; it is not written.
    """
    name = config.lora.name
    if name is None:
        raise ValueError("lora.name is not set; give the name of the expert to train")
    check_name(name)
    processes = this_process()
    digest = base_digest(config.model)
    records = _records_of(name, config.records)
    with processes.main_process_first():
        config.save()
        config.pin({"model": digest, "records": digest_of(config.records)})
    system = system_prompt(records, config.lora.system_prompt)
    records = [replace(record, turns=record.turns[-2:]) for record in records]
    model = load_base(config.model, device="cpu", dtype=getattr(torch, config.dtype))
    set_seed(config.seed)
    adapted = get_peft_model(model, lora_config(model, config.lora.rank))
    rows = _Rows(config, records, name, system, int(model.config.vision_config.spatial_merge_size))
    loss = _fit(adapted, rows, config, processes.num_processes, progress)
    _check_finite(adapted)
    directory = config.out / name
    if processes.is_main_process:
        about = {
            "label": config.lora.label,
            "system_prompt": system,
            "task_types": sorted({kind for record in records if (kind := record.task_type)}),
            "base_digest": digest,
        }
        write_expert(adapted, directory, about, base_name(config.model))
    processes.wait_for_everyone()
    return ExpertResult(directory, len(adapted.targeted_module_names), loss)


def _records_of(name: str, path: Path) -> list[Record]:
    """Those of one expert; a data set has all of them in one file."""
    records = read_labelled(path)
    own = [record for record in records if record.adapter == name]
    if not own:
        named = ", ".join(sorted({str(record.adapter) for record in records}))
        raise ValueError(f"no record in {path} names {name}: it has those of {named}")
    return own


def _fit(
    model: PeftModel,
    rows: _Rows,
    config: RunConfig,
    processes: int,
    progress: Progress | None,
) -> float:
    """Trains to the end of the run; the loss over its last stretch, NaN if none was left to do."""
    trainer = Trainer(
        model=model,
        args=_arguments(config, processes),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Reports(progress)] if progress else [],
    )
    trainer.remove_callback(PrinterCallback)
    last = newest_state(config.out / STATE_FOLDER)
    with Events(config.out if trainer.is_world_process_zero() else None, step_of(last)) as events:
        trainer.add_callback(Tells(events))
        trainer.train(resume_from_checkpoint=last)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses[-1] if losses else math.nan


def _check_finite(model: PeftModel) -> None:
    learnt = (each for each in model.parameters() if each.requires_grad)
    if not all(bool(each.isfinite().all()) for each in learnt):
        raise ArithmeticError(
            "the expert's weights are not finite, so it was not written; lower rates.expert, and "
            "begin in another folder"
        )


def system_prompt(records: Sequence[Record], given: str | None) -> str | None:
    """The one system prompt that an expert is trained with.

    Args:
        records: The expert's.
        given: Replaces theirs; None to take theirs.

    Raises:
        ValueError: They have several.
    """
    if given is not None:
        return given
    found = {record.system for record in records}
    if len(found) > 1:
        raise ValueError(
            f"the records carry {len(found)} system prompts, and an expert has one: "
            "give lora.system_prompt, or split the records"
        )
    return found.pop()


def write_expert(
    model: PeftModel, directory: Path, about: Mapping[str, Any], base: str | None
) -> None:
    """Writes `adapter/` and `expert.json`; the same run writes the same bytes.

    Args:
        model: Holds the adapter.
        directory: The expert's.
        about: What `expert.json` says.
        base: The base's name on the hub, or None; a path would tell of this machine.
    """
    adapter = directory / "adapter"
    # By itself PEFT asks the hub whether the base had other words; embeddings stay as they are.
    model.save_pretrained(str(adapter), save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)
    written = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    # PEFT shortens the names it was given, and writes them as a set happens to hold them.
    written["target_modules"] = sorted(model.targeted_module_names)
    written["base_model_name_or_path"] = base
    (adapter / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    (directory / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


class _Rows(Dataset[dict[str, torch.Tensor]]):
    """Records as the Trainer takes them."""

    def __init__(
        self,
        config: RunConfig,
        records: Sequence[Record],
        name: str,
        system: str | None,
        merge: int,
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(config.model, local_files_only=True)
        self._rows = Conversations(
            records,
            config.images,
            ScreenReader(config.model),
            PromptBuilder(tokenizer),
            {name: system},
        )
        self._merge = merge

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return row_tensors(self._rows[at], self._merge)


def row_tensors(row: Conversation, merge: int) -> dict[str, torch.Tensor]:
    """One record as arguments of the model's forward, without the batch's dimension.

    Args:
        row: The record.
        merge: Patches per image token, along each side.
    """
    prompt = row.instruction.prompt
    ids = torch.tensor([*prompt.ids, row.answer[-1]])
    labels = torch.full_like(ids, _IGNORED)
    labels[-len(row.answer) :] = ids[-len(row.answer) :]
    # The last token only ever is a label: its position is the next one's, whatever it is.
    positions = rope_positions(prompt, row.screen.grid_thw, merge)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.cat([positions, positions[:, -1:] + 1], dim=1),
        "pixel_values": row.screen.pixel_values,
        "image_grid_thw": torch.tensor(row.screen.grid_thw),
    }


def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of any length as one batch, padded on the right."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])

    def padded(name: str, value: int) -> torch.Tensor:
        return pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    positions = pad_sequence([row["position_ids"].T for row in rows], batch_first=True)
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", _IGNORED),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "position_ids": positions.permute(2, 0, 1).contiguous(),  # [3, rows, T]
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "image_grid_thw": torch.stack([row["image_grid_thw"] for row in rows]),
    }


def _arguments(config: RunConfig, processes: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(config.out / STATE_FOLDER),
        max_steps=config.steps,
        per_device_train_batch_size=config.rows_per_forward,
        gradient_accumulation_steps=config.accumulation(processes),
        learning_rate=config.rates.expert,
        lr_scheduler_type="cosine",
        warmup_steps=config.rates.warmup_steps,
        weight_decay=config.rates.weight_decay,
        max_grad_norm=config.rates.clip_norm,
        bf16=config.mixed_precision == "bf16",
        fp16=config.mixed_precision == "fp16",
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=_KEPT_STATES,
        logging_steps=max(1, config.steps // 100),
        # A loss that is no number would be shown as the mean of the others.
        logging_nan_inf_filter=False,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu(),
        use_cpu=on_cpu(),
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        **_checkpointing(config),
    )


def _checkpointing(config: RunConfig) -> dict[str, Any]:
    if not config.gradient_checkpointing:
        return {}
    # transformers 5.24 renamed it.
    known = {field.name for field in fields(TrainingArguments)}
    name = next(
        name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known
    )
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
