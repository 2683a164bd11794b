"""What a feature cache holds and where it came from, as `features.json` states it.

Knows that file; knows neither how features are extracted nor their shards.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_service.core import ExpertEntry, FeatureSpec
from training.run_file import digest_of

INDEX_FILE = "features.json"


@dataclass(frozen=True)
class FeatureIndex:
    """What a cache holds and where it came from.

    Attributes:
        feature_spec: What the features are.
        expert_set: Digest of the experts that were loaded when they were extracted.
        experts: The experts that records name, in expert-set order: the labels.
        dataset_digest: sha256 (hex) of the records file.
        sources: Names of the records' sources.
        refused_rows: Rows of the file that are no records.
        shards: File name to sha256 (hex), in order.
    """

    feature_spec: FeatureSpec
    expert_set: str
    experts: tuple[ExpertEntry, ...]
    dataset_digest: str
    sources: tuple[str, ...]
    refused_rows: int
    shards: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(expert.name for expert in self.experts)


def to_json(index: FeatureIndex) -> str:
    """The file's text, with the digest of the spec."""
    content = dataclasses.asdict(index) | {"feature_spec_digest": index.feature_spec.digest}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> FeatureIndex:
    """What the file's text states.

    Raises:
        ValueError: It is no JSON, or the spec has another digest than is stated.
        KeyError: A part is missing.
        TypeError: A part is unknown.
    """
    content: dict[str, Any] = json.loads(text)
    if content.pop("feature_spec_digest") != FeatureSpec(**content["feature_spec"]).digest:
        raise ValueError("the feature spec changed since the features were extracted")
    return FeatureIndex(
        feature_spec=FeatureSpec(**content.pop("feature_spec")),
        experts=tuple(ExpertEntry(**expert) for expert in content.pop("experts")),
        sources=tuple(content.pop("sources")),
        **content,
    )


def read_index(directory: Path) -> FeatureIndex:
    """What a cache states of itself.

    Args:
        directory: What `cache_features` wrote.

    Raises:
        ValueError: It holds no index, or one that is not what was written.
    """
    try:
        return from_json((directory / INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{directory} holds no whole feature cache; extract again") from error
    except ValueError as error:
        raise ValueError(f"{directory} cannot be used: {error}; extract again") from error


def index_digest(directory: Path | None) -> str:
    """sha256 (hex) of a cache's index; none of no cache, or of one that `read_index` refuses."""
    index = directory / INDEX_FILE if directory else None
    return digest_of(index) if index and index.is_file() else ""
