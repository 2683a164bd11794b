"""Packs many question-answer pairs about one screen into one row.

Knows token ids, positions and masks; does not know what is asked or which weights train.

A row is the shared prefix (system prompt and screen) followed by one branch per question. A branch
sees the prefix and itself, never another branch, and its positions go on from the prefix: each
branch is computed exactly as if it stood alone, while the screen is paid for once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import PixelInput

IGNORED = -100
Place = tuple[float, float]


@dataclass(frozen=True)
class QuestionAnswer:
    """One supervised pair; the answer is learnt, the question is context.

    `looks` tells where on the screen the answer is found, as shares of width and height: a place
    for each word of the answer (None where it stands nowhere), or a single place, which is looked
    at until the answer's first digit.
    """

    question: str
    answer: str
    looks: tuple[Place | None, ...] = ()


@dataclass(frozen=True)
class PackedRow:
    """One screen with its branches, before padding.

    `ids`, `labels` and `branch` have length T; `positions` is [3, T] (M-RoPE). A branch of 0 is the
    prefix. A label stands at the position that predicts it. `looks` is [n, 2]: such a position, and
    that of the image token where the answer is found; `places` [n, 2] is where that is, as shares
    of width and height.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    branch: torch.Tensor
    positions: torch.Tensor
    looks: torch.Tensor
    places: torch.Tensor
    screen: PixelInput


@dataclass(frozen=True)
class PackedBatch:
    """Padded rows, as keyword arguments of `Qwen3VLModel.forward` plus the labels."""

    input_ids: torch.Tensor  # [rows, T]
    labels: torch.Tensor  # [rows, T]
    position_ids: torch.Tensor  # [3, rows, T]
    attention_mask: torch.Tensor  # [rows, 1, T, T], bool
    pixel_values: torch.Tensor  # [patches of all rows, dim]
    image_grid_thw: torch.Tensor  # [rows, 3]
    looks: torch.Tensor  # [n, 3]: row, position, position of the image token
    places: torch.Tensor  # [n, 2]: x, y, shares of width and height

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """The forward's keyword arguments."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "pixel_values": self.pixel_values,
            "image_grid_thw": self.image_grid_thw,
        }


def pack_row(
    builder: PromptBuilder,
    screen: PixelInput,
    pairs: Sequence[QuestionAnswer],
    *,
    system: str | None,
) -> PackedRow:
    """One screen and its questions as one row.

    Args:
        builder: Of the checkpoint.
        screen: The preprocessed screen.
        pairs: At least one.
        system: System prompt shared by the branches.

    Returns:
        The unpadded row.
    """
    ids: list[int] = []
    labels: list[int] = []
    branch: list[int] = []
    positions: list[torch.Tensor] = []
    looks: list[tuple[int, int]] = []
    places: list[Place] = []
    for number, pair in enumerate(pairs, start=1):
        prompt = builder.build(
            system=system,
            history=(),
            text=pair.question,
            image_tokens=screen.image_tokens,
            trusted_system=True,
        )
        split = prompt.image_start + prompt.image_tokens + 1
        if not ids:
            ids += prompt.ids[:split]
            labels += [IGNORED] * split
            branch += [0] * split
            positions.append(_prefix_positions(prompt.image_start, screen))
        question = list(prompt.ids[split:])
        answer = [*builder.encode_answer(pair.answer), builder.end_of_turn]
        first = len(ids) + len(question) - 1
        for at, place in enumerate(_places(builder, pair, answer[:-1])):
            if place is not None:
                looks.append((first + at, prompt.image_start + screen.token_at(*place)))
                places.append(place)
        ids += [*question, *answer[:-1]]
        labels += [IGNORED] * (len(question) - 1) + answer
        length = len(question) + len(answer) - 1
        branch += [number] * length
        start = int(positions[0][:, -1].max()) + 1
        positions.append(torch.arange(start, start + length).expand(3, -1))
    return PackedRow(
        torch.tensor(ids),
        torch.tensor(labels),
        torch.tensor(branch),
        torch.cat(positions, dim=1),
        torch.tensor(looks, dtype=torch.long).view(-1, 2),
        torch.tensor(places).view(-1, 2),
        screen,
    )


def _places(
    builder: PromptBuilder, pair: QuestionAnswer, answer: Sequence[int]
) -> list[Place | None]:
    """Where each token of the answer is found."""
    if not pair.looks:
        return [None] * len(answer)
    if len(pair.looks) == 1:
        # The first digit gives the place away: whoever is told of later ones learns to look where
        # the coordinate says, and not for what the question asks.
        shown = re.split(r"(?<=\d)", pair.answer, maxsplit=1)[0]
        looked = min(len(builder.encode_answer(shown)), len(answer))
        return [*pair.looks * looked, *[None] * (len(answer) - looked)]
    # Qwen's tokenizer never joins over a space, so words can be counted one by one.
    words = re.split("(?= )", pair.answer)
    lengths = [len(builder.encode_answer(word)) for word in words]
    return [place for place, length in zip(pair.looks, lengths, strict=True) for _ in range(length)]


def _prefix_positions(image_start: int, screen: PixelInput) -> torch.Tensor:
    """M-RoPE positions of text, image and the vision end token, [3, prefix length]."""
    frames = screen.grid_thw[0]
    rows, columns = screen.token_grid
    text = torch.arange(image_start).expand(3, -1)
    grid = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
    end = torch.full((3, 1), image_start + max(rows, columns))
    return torch.cat([text, image_start + grid.T, end], dim=1)


def collate(rows: Sequence[PackedRow], *, pad_id: int) -> PackedBatch:
    """Pads rows on the right and builds the block mask."""
    length = max(len(row.ids) for row in rows)

    def pad(values: torch.Tensor, value: int) -> torch.Tensor:
        return F.pad(values, (0, length - values.shape[-1]), value=value)

    branch = torch.stack([pad(row.branch, -1) for row in rows])  # [rows, T]
    own = branch[:, :, None] == branch[:, None, :]
    prefix = branch[:, None, :] == 0
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    looks = [F.pad(row.looks, (1, 0), value=at) for at, row in enumerate(rows)]
    return PackedBatch(
        input_ids=torch.stack([pad(row.ids, pad_id) for row in rows]),
        labels=torch.stack([pad(row.labels, IGNORED) for row in rows]),
        position_ids=torch.stack([pad(row.positions, 0) for row in rows], dim=1),
        attention_mask=((own | prefix) & causal)[:, None],
        pixel_values=torch.cat([row.screen.pixel_values for row in rows]),
        image_grid_thw=torch.tensor([row.screen.grid_thw for row in rows]),
        looks=torch.cat(looks),
        places=torch.cat([row.places for row in rows]),
    )


def answer_loss(hidden: torch.Tensor, head: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the answers' tokens only.

    Args:
        hidden: Last hidden state, [rows, T, hidden].
        head: The LM head.
        labels: [rows, T]; `IGNORED` where nothing is learnt.

    Returns:
        Mean loss in nats per token.
    """
    learnt = labels != IGNORED
    return F.cross_entropy(head(hidden[learnt]).float(), labels[learnt])
