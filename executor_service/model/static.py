"""Decode in static shapes: one step over the lowest slots, as a CUDA graph where there is a device.

Knows slots, gates and addresses that stay; does not know requests, prefill or gates per layer.

What a graph replays is fixed: kernels, shapes, addresses. So what differs between two steps is in
tensors of one size: which token, where it is kept, how far it sees, its gates. Every rank of the
snapshot runs, a gate of zero taking an expert out. Rows are rounded up to a power of two, keys to a
multiple of 256, so that few graphs serve all steps. A row without an answer leaves its keys and
values in its slot's spare position, which no row sees.

Written to be captured and compared with the eager step on a CPU. Nobody has run it on a GPU yet.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from executor_service.model.decoder import Decoder
from executor_service.model.experts import ExpertSet
from executor_service.model.layers import GateState
from executor_service.model.rows import RowBatch
from executor_service.model.slots import SlotCache

if TYPE_CHECKING:
    from executor_service.model.gated import DecodeRow

DecodeBackend = Literal["eager", "static", "cuda_graph"]

KEY_BUCKET = 256
MAX_GRAPHS = 32


@dataclass(frozen=True)
class Shape:
    """What a graph is captured for: rows, which are slots from 0 on, and keys that each sees."""

    rows: int
    keys: int

    @classmethod
    def of(cls, rows: Sequence[DecodeRow], slots: SlotCache) -> Shape:
        """The smallest that serves these rows."""
        highest = max(row.slot for row in rows)
        longest = max(row.length for row in rows)
        return cls(
            rows=min(1 << highest.bit_length(), slots.count),
            keys=min((longest // KEY_BUCKET + 1) * KEY_BUCKET, slots.length),
        )


class StepInput:
    """What differs between two steps of one shape, on the device and never anywhere else.

    Attributes:
        table: int64 [4, rows]: token id, where it is kept, last position it sees, M-RoPE position.
        gates: float32 [rows, experts].
    """

    def __init__(self, shape: Shape, experts: int, device: torch.device) -> None:
        self.table = torch.zeros(4, shape.rows, dtype=torch.long, device=device)
        self.gates = torch.zeros(shape.rows, experts, device=device)

    def fill(self, rows: Sequence[DecodeRow], spare: int) -> None:
        """Take in a step.

        Args:
            rows: Its answers.
            spare: Where a row without an answer keeps. It sees position 0: what is there is a
                number, and a softmax over nothing is none.
        """
        table = torch.zeros(self.table.shape, dtype=torch.long)
        gates = torch.zeros(self.gates.shape)
        table[1] = spare
        for row in rows:
            table[:, row.slot] = torch.tensor((row.token_id, row.length, row.length, row.position))
            gates[row.slot] = torch.tensor(row.gates.weights)
        self.table.copy_(table)
        self.gates.copy_(gates)


class StaticKeyValues:
    """Writes one token into each of the first slots, where a tensor says."""

    def __init__(self, slots: SlotCache, shape: Shape, kept_at: torch.Tensor) -> None:
        self._slots, self._shape, self._kept_at = slots, shape, kept_at
        self._rows = torch.arange(shape.rows, device=kept_at.device)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps [rows, heads, 1, head_dim], returns [rows, heads, shape's keys, head_dim]."""
        visible = []
        for held, new in ((self._slots.keys, keys), (self._slots.values, values)):
            part = held[layer_idx][: self._shape.rows]
            part[self._rows, :, self._kept_at] = new[:, :, 0]
            visible.append(part[:, :, : self._shape.keys])
        return visible[0], visible[1]


@dataclass(frozen=True)
class Graph:
    """A captured step: its input is filled, it is replayed, its logits are read."""

    input: StepInput
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor


class StaticDecoder:
    """Decodes the answers of one slot cache, all rows holding one snapshot.

    A snapshot that nobody holds any more is not kept alive by its graphs, and they go when the next
    one is captured. The first step of a new shape or snapshot captures, which takes as long as
    several steps; a server pays it when traffic first reaches that shape.

    Args:
        language: A `Qwen3VLTextModel`.
        head: From hidden states to logits.
        decoder: Runs its layers.
        state: Through which gates reach them; empty again after every call.
        capture: Capture and replay CUDA graphs; else run the same function each time.
    """

    def __init__(
        self,
        language: Any,
        head: Callable[[torch.Tensor], torch.Tensor],
        decoder: Decoder,
        state: GateState,
        *,
        capture: bool,
    ) -> None:
        self._embed = language.embed_tokens
        self._head = head
        self._decoder = decoder
        self._state = state
        # One for all captures, or they would not share their memory.
        self._stream = _stream() if capture else None
        self._graphs: OrderedDict[tuple[weakref.ref[ExpertSet], Shape], Graph] = OrderedDict()

    @torch.no_grad()
    def decode(
        self, rows: Sequence[DecodeRow], slots: SlotCache, experts: ExpertSet
    ) -> torch.Tensor:
        """As `GatedModel.decode`, for rows without gates per layer.

        Args:
            rows: At least one, no two in one slot.
            slots: Always the same: graphs hold the addresses of their tensors.
            experts: The snapshot that all rows hold.
        """
        assert not any(row.gates.layers for row in rows), "gates per layer are decoded eagerly"
        assert all(row.length < slots.length for row in rows), "an answer fits into its slot"
        shape = Shape.of(rows, slots)
        if self._stream:
            logits = self._replayed(rows, slots, experts, shape, self._stream)
        else:
            step = StepInput(shape, len(experts.names), slots.device)
            step.fill(rows, slots.length)
            logits = self._run(step, slots, experts, shape)
        # By an index, so a copy: the next replay writes over a graph's logits.
        return logits[[row.slot for row in rows]]

    def _run(
        self, step: StepInput, slots: SlotCache, experts: ExpertSet, shape: Shape
    ) -> torch.Tensor:
        """Logits, float32 [rows, vocab]. All that is captured: nothing here looks at a value."""
        ids, kept_at, last_seen, position = step.table
        visible = torch.arange(shape.keys, device=slots.device) <= last_seen[:, None]
        batch = RowBatch(
            embeds=self._embed(ids[:, None]),
            positions=torch.stack([last_seen, *[position] * 3])[:, :, None],
            mask=visible[:, None, None],
            image_mask=visible[:, :0],
            deepstack=(),
            spans=((0, 1),) * shape.rows,
            images=((0, 0),) * shape.rows,
        )
        updates = experts.stacks.text_updates(step.gates, None, range(len(experts.names)))
        with self._state.applied(updates):
            hidden = self._decoder.run(batch, StaticKeyValues(slots, shape, kept_at))
        return self._head(hidden[:, 0]).float()

    def _replayed(
        self,
        rows: Sequence[DecodeRow],
        slots: SlotCache,
        experts: ExpertSet,
        shape: Shape,
        stream: torch.cuda.Stream,
    ) -> torch.Tensor:
        key = (weakref.ref(experts), shape)
        captured = self._graphs.get(key)
        if captured is None:
            step = StepInput(shape, len(experts.names), slots.device)
            step.fill(rows, slots.length)
            captured = self._graphs[key] = self._captured(step, slots, experts, shape, stream)
            self._drop()
        else:
            captured.input.fill(rows, slots.length)
            self._graphs.move_to_end(key)
        captured.graph.replay()
        return captured.logits

    def _captured(
        self,
        step: StepInput,
        slots: SlotCache,
        experts: ExpertSet,
        shape: Shape,
        stream: torch.cuda.Stream,
    ) -> Graph:
        # A warm-up before, on the stream of the capture: libraries set themselves up in it, and the
        # stacks make the tensors that they keep. It keeps the same token in the same place.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(step, slots, experts, shape)
        # Graphs are replayed one after the other, so all of them share one pool.
        pool = next((held.graph.pool() for held in self._graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        # Not "global": an expert may be on its way to the device from another thread.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            logits = self._run(step, slots, experts, shape)
        return Graph(step, graph, logits)

    def _drop(self) -> None:
        """Graphs of snapshots that are gone, then the one not used for longest."""
        # After the new one is in: a pool that no graph holds cannot be captured into again.
        for key in [key for key in self._graphs if key[0]() is None]:
            del self._graphs[key]
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
