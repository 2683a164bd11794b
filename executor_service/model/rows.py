"""Turns prompts and vision outputs into the language model's input, one row or many.

Knows M-RoPE positions, padding and where image tokens sit; does not know gates or layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from executor_service.model.prompt import BuiltPrompt


@dataclass(frozen=True)
class VisionOutput:
    """What the vision tower made of one screen.

    Attributes:
        embeds: [tokens, hidden], stands in for the image placeholder.
        deepstack: [tokens, hidden] each, added behind the first decoder layers.
        grid_thw: Patches of the screen: 1, rows, columns.
    """

    embeds: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    grid_thw: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return self.embeds.nbytes + sum(part.nbytes for part in self.deepstack)


@dataclass(frozen=True)
class RowBatch:
    """Input of the language model.

    Attributes:
        embeds: [rows, T, hidden].
        positions: [4, rows, T]: text position, then time, height and width of M-RoPE.
        mask: bool [rows, 1, T, keys], True where a query sees a key; None: causal, no padding.
        image_mask: bool [rows, T], the image tokens.
        deepstack: [image tokens of all rows, hidden] each.
        spans: Where each row's tokens lie in T, half-open.
        images: Where each row's image tokens lie in T, half-open.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    image_mask: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    spans: tuple[tuple[int, int], ...]
    images: tuple[tuple[int, int], ...]

    def part(self, start: int, end: int) -> RowBatch:
        """Tokens [start, end) of a single row, behind those that are in its slot already."""
        [(first, last)] = self.images
        seen = slice(max(start, first) - first, max(min(end, last), first) - first)
        keys = torch.arange(end, device=self.embeds.device)
        return RowBatch(
            embeds=self.embeds[:, start:end],
            positions=self.positions[:, :, start:end],
            mask=(keys <= keys[start:, None])[None, None] if start else None,
            image_mask=self.image_mask[:, start:end],
            deepstack=tuple(part[seen] for part in self.deepstack),
            spans=((0, end - start),),
            images=((max(first - start, 0), max(last - start, 0)),),
        )


def rope_positions(prompt: BuiltPrompt, grid_thw: tuple[int, int, int], merge: int) -> torch.Tensor:
    """M-RoPE positions of a prompt with one screen.

    Text counts on in all three axes. An image token stands at its time, row and column, counted
    from the position where the image begins; behind the image, counting goes on after its longer
    side. Computed here because the model's own helper keeps a state on the module.

    Args:
        prompt: The prompt.
        grid_thw: The screen's patches.
        merge: Patches per image token, along each side.

    Returns:
        int64 [3, T].
    """
    rows, columns = grid_thw[1] // merge, grid_thw[2] // merge
    start, end = prompt.image_start, prompt.image_start + prompt.image_tokens
    positions = torch.arange(len(prompt.ids)).repeat(3, 1)
    positions[0, start:end] = start
    positions[1, start:end] = start + torch.arange(rows).repeat_interleave(columns)
    positions[2, start:end] = start + torch.arange(columns).repeat(rows)
    positions[:, end:] += max(rows, columns) - prompt.image_tokens
    return positions


def build_rows(
    prompts: Sequence[BuiltPrompt],
    vision: Sequence[VisionOutput],
    embedding: torch.nn.Module,
    merge: int,
    *,
    left_padded: bool = False,
) -> RowBatch:
    """Puts prompts of any length into one batch.

    Args:
        prompts: One per row.
        vision: The vision output of each row's screen.
        embedding: The model's token embedding.
        merge: Patches per image token, along each side.
        left_padded: Whether shorter rows are padded on the left.

    Raises:
        ValueError: A prompt has another number of image tokens than its vision output.
    """
    device = next(embedding.parameters()).device
    lengths = [len(prompt.ids) for prompt in prompts]
    longest = max(lengths)
    spans = tuple((longest - length, longest) if left_padded else (0, length) for length in lengths)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    positions = torch.zeros(4, len(prompts), longest, dtype=torch.long)
    image_mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    images = []
    for row, (prompt, seen, (start, end)) in enumerate(zip(prompts, vision, spans, strict=True)):
        if seen.embeds.shape[0] != prompt.image_tokens:
            raise ValueError("the prompt's image tokens are not those of its vision output")
        ids[row, start:end] = torch.tensor(prompt.ids)
        positions[0, row, start:end] = torch.arange(end - start)
        positions[1:, row, start:end] = rope_positions(prompt, seen.grid_thw, merge)
        at = start + prompt.image_start
        image_mask[row, at : at + prompt.image_tokens] = True
        images.append((at, at + prompt.image_tokens))
    image_mask = image_mask.to(device)
    embeds = embedding(ids.to(device))
    looks = torch.cat([seen.embeds for seen in vision]).to(embeds)
    return RowBatch(
        embeds=embeds.masked_scatter(image_mask.unsqueeze(-1), looks),
        positions=positions.to(device),
        mask=_mask(spans, longest).to(device) if min(lengths) < longest else None,
        image_mask=image_mask,
        deepstack=tuple(
            torch.cat(parts).to(embeds)
            for parts in zip(*(seen.deepstack for seen in vision), strict=True)
        ),
        spans=spans,
        images=tuple(images),
    )


def _mask(spans: Sequence[tuple[int, int]], longest: int) -> torch.Tensor:
    """Causal within each row's span. Padding sees itself, so that no softmax runs over nothing."""
    at = torch.arange(longest)
    causal = at[:, None] >= at[None, :]
    rows = []
    for start, end in spans:
        real = (at >= start) & (at < end)
        rows.append((causal & real[None, :] & real[:, None]) | torch.eye(longest, dtype=torch.bool))
    return torch.stack(rows).unsqueeze(1)
