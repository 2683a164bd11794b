"""An endless, seeded stream of drawn screens with questions, as packed rows.

Knows how to draw, preprocess and pack; does not know what learns from it.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from training.cores import cores
from training.packing import PackedRow, QuestionAnswer, pack_row

# So few screens would be asked about too often.
_FEW = 16
_MOST_WORKERS = 8
# A step from which a stopped run goes on, times this, is added to its seed: it draws other screens.
RESUMED_OFFSET = 1_000_003
# Between the seeds of two processes that draw the same stream.
_WORKER_OFFSET = 10_000_019

Turn = TypeVar("Turn")
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


@dataclass(frozen=True)
class _Pool:
    """The last screens of a source, and how many are kept at most."""

    drawn: list[_Drawn]
    most: int


class ScreenStream(IterableDataset[list[PackedRow]]):
    """Yields, forever and in turn, a list of `rows` packed rows for each source.

    Drawing costs more than asking, so a screen is asked about several times: each turn draws anew
    with probability `fresh`, else takes one of the last `kept` screens, with new questions.

    Args:
        reader: Preprocessing of the checkpoint.
        builder: Prompt layout of the checkpoint.
        sources: Kinds of screens.
        seed: Of everything drawn; a resumed run passes another. With several workers their number
            tells as well, of which each has a seed of its own.
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
        (worker, workers), rng = this_worker(), worker_rng(self._seed)
        # What is kept is shared out, or as many pools would take as many times the memory.
        most = max(1, self._kept // workers)
        pools = [_Pool([], most) for _ in self._sources]
        for turn in itertools.count(worker, workers):
            at = turn % len(self._sources)
            source, pool = self._sources[at], pools[at]
            yield [self._row(source, pool, rng) for _ in range(source.rows)]

    def _row(self, source: Source, pool: _Pool, rng: random.Random) -> PackedRow:
        drawn = self._drawn(source, pool, rng)
        pairs = source.ask(drawn.screen, rng, source.questions)
        pixels = self._reader.preprocess(drawn.resized)
        return pack_row(self._builder, pixels, pairs, system=rng.choice(source.systems))

    def _drawn(self, source: Source, pool: _Pool, rng: random.Random) -> _Drawn:
        if len(pool.drawn) >= min(_FEW, pool.most) and rng.random() > self._fresh:
            return rng.choice(pool.drawn)
        screen = source.draw(rng)
        resized = self._reader.resize(screen.image.convert("RGB"))
        # Questions ask a picture for its size only, and hundreds of whole ones are gigabytes.
        small = Image.new("1", screen.image.size)
        drawn = _Drawn(dataclasses.replace(screen, image=small), resized)
        if len(pool.drawn) < pool.most:
            pool.drawn.append(drawn)
        else:
            pool.drawn[rng.randrange(pool.most)] = drawn
        return drawn


def this_worker() -> tuple[int, int]:
    """This process's number among those that draw one stream, and how many they are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def worker_rng(seed: int) -> random.Random:
    """What this process draws a stream with; no two processes of a stream draw the same."""
    worker, _ = this_worker()
    return random.Random(seed + _WORKER_OFFSET * worker)  # noqa: S311 - drawings, not secrets


def in_background(stream: IterableDataset[Turn]) -> Iterator[Turn]:
    """The stream, drawn a few turns ahead by worker processes on the other cores."""
    workers = min(max(1, cores() - 1), _MOST_WORKERS)
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4))
