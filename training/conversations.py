"""Records as rows to learn from: prompt, answer and screen, in an order that seed and step decide.

Knows records, prompts and files; knows no model and no loss.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from executor_service.model.prompt import BuiltPrompt, PromptBuilder
from executor_service.model.reference import Instruction
from executor_service.model.screen import PixelInput, ScreenReader
from service_chassis.errors import ServiceError
from training.data.checks import check_records
from training.data.origin import image_numbers
from training.data.records import Record, read_labelled


@dataclass(frozen=True)
class Conversation:
    """One record as a model reads it.

    Attributes:
        instruction: Its prompt ends before the answer's last token.
        screen: The preprocessed screen.
        answer: Token ids, with the end of the turn.
        expert: Index of the record's adapter.
    """

    instruction: Instruction
    screen: PixelInput
    answer: tuple[int, ...]
    expert: int


class Conversations:
    """Records of some experts; a screen is decoded when its record is asked for.

    Args:
        records: Each with an adapter that `systems` names.
        images: Folder that image paths are relative to.
        reader: Of the checkpoint.
        builder: Of the checkpoint.
        systems: System prompt of each expert, by name and in expert-set order; a record's own
            comes first.

    Raises:
        ValueError: See `check_records`; and where a record is asked for, its image is damaged or no
            screen that the reader takes.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Path,
        reader: ScreenReader,
        builder: PromptBuilder,
        systems: Mapping[str, str | None],
    ) -> None:
        check_records(records, images)
        self._records = records
        self._images = images
        self._reader = reader
        self._builder = builder
        self._systems = systems
        self._names = list(systems)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, at: int) -> Conversation:
        record = self._records[at]
        adapter = str(record.adapter)
        screen = self._screen(record)
        prompt = self._builder.build(
            system=self._systems[adapter] if record.system is None else record.system,
            history=(),
            text=record.prompt,
            image_tokens=screen.image_tokens,
            trusted_system=True,
        )
        # Records of the old form begin their answers with a line end.
        written = self._builder.encode_answer(record.turns[-1].value.lstrip("\n"))
        taught = BuiltPrompt((*prompt.ids, *written), prompt.image_start, prompt.image_tokens)
        ids, start, end = self._builder.feature_ids(record.prompt)
        return Conversation(
            Instruction(taught, ids, (start, end)),
            screen,
            (*written, self._builder.end_of_turn),
            self._names.index(adapter),
        )

    def _screen(self, record: Record) -> PixelInput:
        try:
            return self._reader.read((self._images / record.image).read_bytes())
        except ServiceError as error:
            raise ValueError(
                f"record {record.id} with {record.image} cannot be learnt from: {error.message}"
            ) from error

    def without(self, images: Collection[int]) -> Conversations:
        """Those on other screens.

        Args:
            images: Screens, numbered as `image_number` does.
        """
        kept = [at for at, number in enumerate(self.image_numbers) if number not in images]
        rest = copy.copy(self)
        rest._records = [self._records[at] for at in kept]
        rest.image_numbers = [self.image_numbers[at] for at in kept]
        return rest

    @functools.cached_property
    def image_numbers(self) -> list[int]:
        """`image_number` of each record; every screen is read for it, so once."""
        return image_numbers(self._records, self._images)

    def marginals(self) -> torch.Tensor:
        """Share of the records that each expert has, float32 [K]."""
        counts = Counter(str(record.adapter) for record in self._records)
        return torch.tensor([counts[name] / len(self) for name in self._names])


def labelled_records(path: Path, names: Sequence[str]) -> list[Record]:
    """The records of a file, all of them labelled with one of some experts.

    Args:
        path: JSONL file.
        names: The experts.

    Raises:
        ValueError: A row is no record, or a record has no adapter or another one.
    """
    records = read_labelled(path)
    if strange := sorted({str(record.adapter) for record in records} - set(names)):
        raise ValueError(
            f"records name {', '.join(strange)}, which is none of {', '.join(names)}; "
            "leave them out or name their experts"
        )
    return records


def rows_of_step(count: int, step: int, batch_rows: int, seed: int) -> list[int]:
    """Which records a step learns from: passes over all of them, each in an order of its own.

    Args:
        count: Records in all.
        step: From 0.
        batch_rows: Records in a step.
        seed: Of the orders.

    Returns:
        Indices; the same for the same arguments, whatever ran before.
    """
    first = step * batch_rows
    orders: dict[int, list[int]] = {}
    rows = []
    for place in range(first, first + batch_rows):
        epoch, at = divmod(place, count)
        if epoch not in orders:
            order = torch.Generator().manual_seed(seed_of(seed, epoch))
            orders[epoch] = torch.randperm(count, generator=order).tolist()
        rows.append(orders[epoch][at])
    return rows


def seed_of(*parts: int) -> int:
    """One seed of several numbers; close numbers give seeds that have nothing in common."""
    mixed = 0
    for part in parts:
        # SplitMix64 (Steele et al. 2014).
        mixed = (mixed ^ part) + 0x9E3779B97F4A7C15 & _64_BITS
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _64_BITS
        mixed ^= mixed >> 31
    return mixed >> 1


_64_BITS = 2**64 - 1
