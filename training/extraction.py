"""Features of a data set's records, asked of an executor once and written into a cache.

Knows records and the executor's contract; knows no head. What a cache holds is in `features`. An
agent's hint is what `read_hint` finds in a record's metadata.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file

from molora_client import ContextRef, Features, InvalidArgumentError, Molora, ServerInfo
from router_service.core import ExpertEntry, FeatureSpec
from training.data.checks import check_hints, check_records
from training.data.hints import AGENT_EXPERT, read_hint
from training.data.origin import image_number
from training.data.records import Record, read_records
from training.data.sources import SOURCE
from training.feature_index import INDEX_FILE, FeatureIndex, to_json
from training.features import COLUMNS
from training.run_file import digest_of, write_whole

# Of a shard at most; the 8B's features of one record may be 256 KiB.
_SHARD_ROWS = 4096
_SHARD_BYTES = 2**28
# An executor looks at several together, and decodes one while it looks at another.
_IMAGES_TOGETHER = 4
# Of a client that extracts: a cold executor may need long for its first screen.
CALL_TIMEOUT_S = 120.0


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
        dataset_digest=digest_of(records_path),
        sources=tuple(sorted({_source(record, records_path.stem) for record in records})),
        refused_rows=len(read.refused),
        shards={},
    )
    check_hints(read.records, index.names)
    rows = track(
        _Extraction(executor, images_root, records_path.stem, index).rows(records),
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
        index.shards[name] = digest_of(out / name)
    write_whole(out / INDEX_FILE, to_json(index))
    return index


@dataclass(frozen=True)
class _Row:
    text: torch.Tensor
    vision: torch.Tensor
    label: int
    image: int
    source: int
    hinted: int
    confidence: float


@dataclass(frozen=True)
class _Extraction:
    """Whom to ask, and what the answers belong to.

    Attributes:
        client: Of the executor.
        folder: That image paths are relative to.
        source: Of a record that names none.
        index: Of the cache.
    """

    client: Molora
    folder: Path
    source: str
    index: FeatureIndex

    def rows(self, records: Sequence[Record]) -> Iterator[_Row]:
        """In the records' order, several images at a time: what one waits for, another uses."""
        groups = itertools.groupby(records, lambda record: record.image)
        images = (list(group) for _, group in groups)
        with ThreadPoolExecutor(_IMAGES_TOGETHER) as pool:
            first = itertools.islice(images, _IMAGES_TOGETHER)
            waiting = deque(pool.submit(self._of_image, image) for image in first)
            while waiting:
                yield from waiting.popleft().result()
                following = itertools.islice(images, 1)
                waiting.extend(pool.submit(self._of_image, image) for image in following)

    def _of_image(self, records: Sequence[Record]) -> list[_Row]:
        """Rows of records of one image, which is sent once."""
        data = (self.folder / records[0].image).read_bytes()
        image, screen, rows = image_number(records[0], data), ContextRef("", data=data), []
        for record in records:
            features = self._ask(record, screen)
            screen = features.context
            rows.append(self._row(record, image, features))
        return rows

    def _ask(self, record: Record, screen: ContextRef) -> Features:
        try:
            features = self.client.features(record.prompt, screen)
        except InvalidArgumentError as error:
            raise ValueError(
                f"record {record.id} with {record.image} has no features: {error.message}"
            ) from error
        found = (features.feature_spec, features.model, features.expert_set)
        spec = self.index.feature_spec
        if found != (spec.digest, spec.base_digest, self.index.expert_set):
            raise ValueError(
                "the executor changed while features were being extracted; start again"
            )
        return features

    def _row(self, record: Record, image: int, features: Features) -> _Row:
        names = self.index.names
        hinted, confidence = read_hint(record.metadata, names)
        return _Row(
            # As numbers of Python they would take eight times as much.
            text=torch.tensor(features.text),
            vision=torch.tensor(features.vision),
            label=names.index(record.adapter) if names and record.adapter else -1,
            image=image,
            source=self.index.sources.index(_source(record, self.source)),
            hinted=hinted,
            confidence=confidence,
        )


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
    numbers = [name for name in COLUMNS if name not in parts]
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


def _source(record: Record, otherwise: str) -> str:
    """The group a record belongs to; a file that says nothing is one source."""
    stated = record.metadata.get(SOURCE)
    return otherwise if stated is None else str(stated)
