"""An endless, seeded stream of drawn screens with questions, as packed rows.

Knows how to draw, preprocess and pack; does not know what learns from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from training.packing import PackedRow, QuestionAnswer, pack_row

Draw = Callable[[random.Random], Any]
Ask = Callable[[Any, random.Random, int], list[QuestionAnswer]]


@dataclass(frozen=True)
class Source:
    """One kind of screen: how to draw it, what to ask, rows a turn, questions a row."""

    draw: Draw
    ask: Ask
    rows: int
    questions: int
    systems: Sequence[str | None]


@dataclass(frozen=True)
class _Drawn:
    screen: Any
    resized: Image.Image


class ScreenStream(IterableDataset[list[PackedRow]]):
    """Yields, forever and in turn, a list of `rows` packed rows for each source.

    Drawing costs more than asking, so a screen is asked about several times: each turn draws anew
    with probability `fresh`, else takes one of the last `kept` screens, with new questions.

    Args:
        reader: Preprocessing of the checkpoint.
        builder: Prompt layout of the checkpoint.
        sources: Kinds of screens.
        seed: Of everything drawn; a resumed run passes another.
    """

    def __init__(
        self,
        reader: ScreenReader,
        builder: PromptBuilder,
        sources: Sequence[Source],
        *,
        seed: int,
        fresh: float = 0.4,
        kept: int = 100,
    ) -> None:
        self._reader, self._builder, self._sources = reader, builder, sources
        self._seed, self._fresh, self._kept = seed, fresh, kept

    def __iter__(self) -> Iterator[list[PackedRow]]:
        """Starts over from the seed."""
        rng = random.Random(self._seed)  # noqa: S311 - drawings, not secrets
        pools: list[list[_Drawn]] = [[] for _ in self._sources]
        while True:
            for source, pool in zip(self._sources, pools, strict=True):
                yield [self._row(source, pool, rng) for _ in range(source.rows)]

    def _row(self, source: Source, pool: list[_Drawn], rng: random.Random) -> PackedRow:
        drawn = self._drawn(source, pool, rng)
        pairs = source.ask(drawn.screen, rng, source.questions)
        pixels = self._reader.preprocess(drawn.resized)
        return pack_row(self._builder, pixels, pairs, system=rng.choice(source.systems))

    def _drawn(self, source: Source, pool: list[_Drawn], rng: random.Random) -> _Drawn:
        if len(pool) >= 16 and rng.random() > self._fresh:
            return rng.choice(pool)
        screen = source.draw(rng)
        drawn = _Drawn(screen, self._reader.resize(screen.image.convert("RGB")))
        if len(pool) < self._kept:
            pool.append(drawn)
        else:
            pool[rng.randrange(self._kept)] = drawn
        return drawn


def in_background(stream: ScreenStream) -> Iterator[list[PackedRow]]:
    """The stream, drawn by one worker process a few turns ahead."""
    return iter(DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4))
