"""Teaches the vision tower to see before the decoder learns to speak.

Knows which image token a mark falls into; does not know questions. Trained through questions alone
the whole model sits on a plateau for thousands of steps: the decoder finds nothing to look at, and
so sends the tower nothing to learn from. A head on each image token, thrown away afterwards, names
what stands in the token, where in it, and where the token is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from executor_service.model.screen import PixelInput, ScreenReader
from training.miniature.fit import FitConfig, learning_rate, steps_with_progress, write_state
from training.miniature.marks import NAMES, marks
from training.miniature.muon import MuonAdamW
from training.miniature.speed import mixed_precision, moved
from training.miniature.stream import RESUMED_OFFSET, Draw, in_background, worker_rng

# Marks are rare: most tokens hold none, and each name is absent from most.
POSITIVE_WEIGHT = 8.0
PLACE_WEIGHT = 4.0
PLACES = 48  # bins of the width, and of the height
# To a step. Many small steps learn more in the same time than few large ones.
SCREENS = 2


@dataclass(frozen=True)
class Lesson:
    """Screens and their marks.

    `token`, `name` and `offset` ([marks], [marks], [marks, 2]) say which image token of the batch
    holds which of `NAMES`, and how far from the token's centre in token sides, x then y. `place` is
    [image tokens, 2]: in which of `PLACES` bins of the width and of the height each token lies.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    token: torch.Tensor
    name: torch.Tensor
    offset: torch.Tensor
    place: torch.Tensor


class LessonStream(IterableDataset[Lesson]):
    """Endless freshly drawn lessons, a function of the seed and of how many workers draw.

    Args:
        reader: Preprocessing of the checkpoint.
        draws: The screens of the lessons, taken in turn.
        seed: Of everything drawn.
        screens: To a lesson.
    """

    def __init__(
        self, reader: ScreenReader, draws: Sequence[Draw], *, seed: int, screens: int = SCREENS
    ) -> None:
        self._reader, self._draws, self._seed, self._screens = reader, draws, seed, screens

    def __iter__(self) -> Iterator[Lesson]:
        """Starts over from the seed."""
        rng = worker_rng(self._seed)
        draws = itertools.cycle(self._draws)
        while True:
            yield self._lesson([draw(rng) for draw in itertools.islice(draws, self._screens)])

    def _lesson(self, screens: Sequence[Any]) -> Lesson:
        inputs: list[PixelInput] = []
        token, name, offset, place = [], [], [], []
        first = 0
        for screen in screens:
            pixels = self._reader.preprocess(screen.image.convert("RGB"))
            rows, columns = pixels.token_grid
            for mark in marks(screen):
                x, y = mark.x * columns, mark.y * rows
                token.append(first + pixels.token_at(mark.x, mark.y))
                name.append(_INDEX[mark.name])
                offset.append((x % 1 - 0.5, y % 1 - 0.5))
            across = (torch.arange(columns) + 0.5) / columns
            down = (torch.arange(rows) + 0.5) / rows
            place.append(torch.cartesian_prod(down, across).flip(1))
            first += pixels.image_tokens
            inputs.append(pixels)
        return Lesson(
            torch.cat([pixels.pixel_values for pixels in inputs]),
            torch.tensor([pixels.grid_thw for pixels in inputs]),
            torch.tensor(token),
            torch.tensor(name),
            torch.tensor(offset),
            (torch.cat(place) * PLACES).long(),
        )


_INDEX = {name: index for index, name in enumerate(NAMES)}


class MarkHead(nn.Module):
    """Names, offsets and places from image tokens; lives only while the tower is taught."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = nn.Linear(width, len(NAMES))
        self.offsets = nn.Linear(width, 2 * len(NAMES))
        self.places = nn.Linear(width, 2 * PLACES)
        nn.init.constant_(self.names.bias, -5.0)

    def forward(self, tokens: torch.Tensor, lesson: Lesson) -> tuple[torch.Tensor, float, float]:
        """What the tokens say, against what they show.

        Args:
            tokens: The tower's output, [image tokens, width].
            lesson: What they show.

        Returns:
            The loss, the share of marks that their token names (its logit is above zero), and the
            share of bins of width and height that are right.
        """
        logits = self.names(tokens)
        present = torch.zeros_like(logits)
        present[lesson.token, lesson.name] = 1.0
        weight = torch.full((), POSITIVE_WEIGHT, device=logits.device)
        named = F.binary_cross_entropy_with_logits(
            logits, present, pos_weight=weight, reduction="sum"
        )
        offsets = self.offsets(tokens).view(len(tokens), -1, 2)[lesson.token, lesson.name]
        missed = F.l1_loss(offsets, lesson.offset, reduction="sum")
        places = self.places(tokens).view(-1, PLACES)
        located = F.cross_entropy(places, lesson.place.flatten())
        loss = (named + POSITIVE_WEIGHT * missed) / len(lesson.token) + PLACE_WEIGHT * located
        found = (logits[lesson.token, lesson.name] > 0).float().mean()
        right = (places.argmax(-1) == lesson.place.flatten()).float().mean()
        return loss, float(found), float(right)


def lesson_loss(
    backbone: Qwen3VLModel, head: MarkHead, lesson: Lesson
) -> tuple[torch.Tensor, float, float]:
    """What the tower says of a lesson's screens, against what they show.

    Args:
        backbone: Its tower looks.
        head: Names what it saw.
        lesson: On the backbone's device.

    Returns:
        As `MarkHead.forward`.
    """
    with mixed_precision():
        seen = backbone.get_image_features(lesson.pixel_values, lesson.grid_thw, return_dict=True)
    tokens = torch.cat(list(seen.pooler_output)).float()
    loss: tuple[torch.Tensor, float, float] = head(tokens, lesson)
    return loss


def teach_tower(
    backbone: Qwen3VLModel,
    checkpoint: Path,
    state: Path,
    draws: Sequence[Draw],
    *,
    config: FitConfig,
    seed: int,
) -> None:
    """Trains the tower of `backbone` in place, or goes on where a stopped run left off.

    Args:
        backbone: Its `visual` is trained.
        checkpoint: Directory with the image processor's settings.
        state: File that tower, head and optimiser are kept in.
        draws: The screens, in turn.
        config: How long and how fast.
        seed: Of head and screens.
    """
    tower = backbone.visual
    torch.manual_seed(seed)
    vision: Any = backbone.config.vision_config
    head = MarkHead(vision.out_hidden_size).to(backbone.device)
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = MuonAdamW(tower, head)
    learning = {"tower": tower, "head": head, "optimiser": optimiser}
    first = 0
    if state.exists():
        held = torch.load(state, map_location="cpu", weights_only=True)
        first = held.pop("step")
        for name, part in held.items():
            learning[name].load_state_dict(part)
    if first >= config.steps:
        return

    def save(steps: int) -> None:
        parts = {name: part.state_dict() for name, part in learning.items()}
        write_state({"step": steps, **parts}, state)

    stream = LessonStream(ScreenReader(checkpoint), draws, seed=seed + RESUMED_OFFSET * first)
    lessons = in_background(stream)
    tower.train()
    for step, report in steps_with_progress(state.stem, first, config.steps):
        lesson = moved(next(lessons), backbone.device)
        loss, found, placed = lesson_loss(backbone, head, lesson)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimiser.step(learning_rate(config, step))
        report(f"loss {loss.item():.2f} found {found:.0%} placed {placed:.0%}")
        if (step + 1) % config.save_every == 0:
            save(step + 1)
    save(config.steps)
