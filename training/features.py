"""Router features of a data set, extracted once over the real RPC and kept on disk.

Knows records, the executor's contract and the cache's files; knows no head. A cache directory holds
`features.json` and `shard-NNNNN.safetensors` with, for n rows:

    text [n, text_dim] float32, vision [n, vision_dim] float32,
    label [n] int64 (index into the cache's experts; -1 where nobody knows the screen,
    or only an agent said whose it is),
    image [n] int64 (first eight bytes of the file's sha256, of a changed screen those of the file
        that it was made of: what splits must not cut),
    source [n] int64 (index into the cache's sources)
    hinted [n] int64 (index of the expert that an agent named, -1 where none did)
    confidence [n] float32 (the agent's own, NaN where it gave none)

An agent's hint is what `read_hint` finds in a record's metadata.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load, save_file

from molora_client import ContextRef, Features, InvalidArgumentError, Molora, ServerInfo
from router_service.core import ExpertEntry, FeatureSpec
from training.data.checks import check_hints, check_records
from training.data.hints import AGENT_EXPERT, read_hint
from training.data.origin import image_number
from training.data.records import Record, read_records
from training.feature_index import INDEX_FILE, FeatureIndex, read_index, to_json

# Of a shard at most; the 8B's features of one record may be 256 KiB.
_SHARD_ROWS = 4096
_SHARD_BYTES = 2**28
# An executor looks at several together, and decodes one while it looks at another.
_IMAGES_TOGETHER = 4
# Of a client that extracts: a cold executor may need long for its first screen.
CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class FeatureTable:
    """A cache in memory; the columns are those of the shards."""

    index: FeatureIndex
    text: torch.Tensor
    vision: torch.Tensor
    label: torch.Tensor
    image: torch.Tensor
    source: torch.Tensor
    hinted: torch.Tensor
    confidence: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)


def cache_features(
    records_path: Path,
    images_root: Path,
    executor: Molora,
    out: Path,
    *,
    unknown: bool = False,
    progress: bool = True,
) -> FeatureIndex:
    """Extract the features of every record and write them to a directory.

    Args:
        records_path: JSONL of records, each with its `adapter`, or with an agent's hint instead.
        images_root: Folder that the records' image paths are relative to.
        executor: Connected to an executor that has every named expert loaded.
        out: Directory of the cache; made if it is missing.
        unknown: The records show what no loaded expert knows: whatever they name, none has a label.
        progress: Show a progress bar.

    Returns:
        The index, as written.

    Raises:
        ValueError: A record has neither adapter nor hint, or an adapter that is not loaded, or a
            fault that `check_records` or `check_hints` finds, or a screen or prompt that the
            executor refuses; or there is no record; or the executor changed while features were
            being extracted.
        MoloraError: A call failed.
    """
    read = read_records(records_path)
    if not read.records:
        raise ValueError(f"{records_path} holds no record: {len(read.refused)} rows were refused")
    check_records(read.records, images_root)
    # Records of one image in a row: the executor decodes and sees each screen once.
    records = sorted(read.records, key=lambda record: record.image)
    out.mkdir(parents=True, exist_ok=True)
    # Written last, so gone first: a directory without it is no cache.
    (out / INDEX_FILE).unlink(missing_ok=True)
    info = executor.server_info()
    index = FeatureIndex(
        feature_spec=_feature_spec(info),
        expert_set=info.expert_set,
        experts=() if unknown else _named_experts(executor, records),
        dataset_digest=_sha256(records_path.read_bytes()),
        sources=tuple(sorted({_source(record, records_path) for record in records})),
        refused_rows=len(read.refused),
        shards={},
    )
    check_hints(read.records, index.names)
    rows = track(
        _extract(executor, records, records_path, images_root, index),
        description="features",
        total=len(records),
        disable=not progress,
    )
    spec = index.feature_spec
    row_bytes = 4 * (spec.text_dim + spec.vision_dim)
    most = max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes))
    for number, shard in enumerate(_in_shards(rows, most)):
        name = f"shard-{number:05d}.safetensors"
        save_file(shard, out / name, metadata={"feature_spec": index.feature_spec.digest})
        index.shards[name] = _sha256((out / name).read_bytes())
    (out / INDEX_FILE).write_text(to_json(index), encoding="utf-8")
    return index


def load_features(directory: Path) -> FeatureTable:
    """Read a cache.

    Args:
        directory: What `cache_features` wrote.

    Raises:
        ValueError: The index or a shard is missing or is not what was written.
    """
    index = read_index(directory)
    columns: dict[str, torch.Tensor] = {}
    filled = 0
    try:
        for name, digest in index.shards.items():
            data = (directory / name).read_bytes()
            if _sha256(data) != digest:
                raise ValueError(f"{directory / name} changed since it was written; extract again")
            shard = _with_hints(load(data))
            rows = len(shard["label"])
            # The first shard has as many rows as any, and what stays empty takes no memory.
            columns = columns or _empty_columns(shard, rows * len(index.shards))
            for column, values in columns.items():
                values[filled : filled + rows] = shard[column]
            filled += rows
    except OSError as error:
        raise ValueError(f"{directory} holds no whole feature cache; extract again") from error
    return FeatureTable(index, *(values[:filled] for values in columns.values()))


def _empty_columns(shard: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """Room for so many rows of what a shard holds, in the order of a table."""
    like = {field.name: shard[field.name] for field in dataclasses.fields(_Row)}
    return {name: each.new_empty((rows, *each.shape[1:])) for name, each in like.items()}


@dataclass(frozen=True)
class _Row:
    text: torch.Tensor
    vision: torch.Tensor
    label: int
    image: int
    source: int
    hinted: int
    confidence: float


def _extract(
    client: Molora,
    records: Sequence[Record],
    records_path: Path,
    images_root: Path,
    index: FeatureIndex,
) -> Iterator[_Row]:
    """The records' rows, in order, several images at a time: what one waits for, another uses."""

    def rows(of_image: Sequence[Record]) -> list[_Row]:
        return list(_extract_image(client, of_image, records_path, images_root, index))

    groups = itertools.groupby(records, lambda record: record.image)
    images = (list(group) for _, group in groups)
    with ThreadPoolExecutor(_IMAGES_TOGETHER) as pool:
        first = itertools.islice(images, _IMAGES_TOGETHER)
        waiting = deque(pool.submit(rows, image) for image in first)
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(rows, image) for image in itertools.islice(images, 1))


def _extract_image(
    client: Molora,
    records: Sequence[Record],
    records_path: Path,
    images_root: Path,
    index: FeatureIndex,
) -> Iterator[_Row]:
    data = (images_root / records[0].image).read_bytes()
    image, screen = image_number(records[0], data), ContextRef("", data=data)
    for record in records:
        try:
            features = client.features(record.prompt, screen)
        except InvalidArgumentError as error:
            raise ValueError(
                f"record {record.id} with {record.image} has no features: {error.message}"
            ) from error
        screen = features.context
        _check_unchanged(features, index)
        hinted, confidence = read_hint(record.metadata, index.names)
        yield _Row(
            # As numbers of Python they would take eight times as much.
            text=torch.tensor(features.text),
            vision=torch.tensor(features.vision),
            label=index.names.index(record.adapter) if index.names and record.adapter else -1,
            image=image,
            source=index.sources.index(_source(record, records_path)),
            hinted=hinted,
            confidence=confidence,
        )


def _with_hints(shard: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A shard from before agents were asked has no hints."""
    rows = len(shard["label"])
    return {
        "hinted": torch.full((rows,), -1),
        "confidence": torch.full((rows,), math.nan),
        **shard,
    }


def _check_unchanged(features: Features, index: FeatureIndex) -> None:
    found = (features.feature_spec, features.model, features.expert_set)
    spec = index.feature_spec
    if found != (spec.digest, spec.base_digest, index.expert_set):
        raise ValueError("the executor changed while features were being extracted; start again")


def _in_shards(rows: Iterable[_Row], most: int) -> Iterator[dict[str, torch.Tensor]]:
    held: list[_Row] = []
    for row in rows:
        held.append(row)
        if len(held) == most:
            yield _shard(held)
            held = []
    if held:
        yield _shard(held)


def _shard(rows: Sequence[_Row]) -> dict[str, torch.Tensor]:
    parts = {name: torch.stack([getattr(row, name) for row in rows]) for name in ("text", "vision")}
    numbers = [field.name for field in dataclasses.fields(_Row) if field.name not in parts]
    kinds = {"confidence": torch.float32}
    return parts | {
        name: torch.tensor([getattr(row, name) for row in rows], dtype=kinds.get(name, torch.int64))
        for name in numbers
    }


def _named_experts(client: Molora, records: Sequence[Record]) -> tuple[ExpertEntry, ...]:
    """The loaded experts that records name, in expert-set order."""
    unlabelled = sum(
        not (record.adapter or record.metadata.get(AGENT_EXPERT)) for record in records
    )
    if unlabelled:
        raise ValueError(f"{unlabelled} records have no adapter; run `molora data label` first")
    named = {record.adapter for record in records if record.adapter}
    if not named:
        raise ValueError(
            "no record has an adapter, and an agent's hints alone cannot be checked; label some"
        )
    loaded = client.experts().experts
    if missing := sorted(named - {expert.name for expert in loaded}):
        raise ValueError(f"records name experts that are not loaded: {', '.join(missing)}")
    return tuple(
        ExpertEntry(expert.name, expert.digest, expert.label)
        for expert in loaded
        if expert.name in named
    )


def _feature_spec(info: ServerInfo) -> FeatureSpec:
    """The executor's spec, whose digest both sides must compute alike."""
    stated = dataclasses.asdict(info.feature_spec)
    digest = stated.pop("digest")
    spec = FeatureSpec(**stated)
    if spec.digest != digest:
        raise ValueError(
            "the executor's feature spec has another digest than it states; run executor and "
            "command in one version"
        )
    return spec


def _source(record: Record, records_path: Path) -> str:
    """The group a record belongs to; a file that says nothing is one source."""
    return str(record.metadata.get("source", records_path.stem))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
