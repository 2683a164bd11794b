"""Held-out cases as a bundle's head sees them: one an image, none that it has learnt from.

Knows bundles and feature caches; decides nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from router_service.bundle import Bundle
from router_service.core import Features, HeadOutput
from router_service.head import Head
from router_service.manifest import Manifest
from training.agents import Floats, Hints, Labels
from training.features import FeatureTable
from training.shown import ShownImages

# Of the cases: the agent's weight is fitted to the first, thresholds are proven on the rest.
TUNING_SHARE = 0.25
# Of fewer that share is none.
LEAST_CASES = 3
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Cases:
    """Held-out cases, one an image, in an order that means nothing.

    Attributes:
        dataset_digest: sha256 of the records.
        source: Where they come from, for the operator.
        logits: [n, K] float32, the head's.
        distance: [n] float64, the head's; None if it measures none.
        vision: [n, vision_dim] float32, what the distance is measured on.
        labels: [n], indices of the bundle's experts.
        hints: What an agent said about them.
    """

    dataset_digest: str
    source: str
    logits: npt.NDArray[np.float32]
    distance: Floats | None
    vision: npt.NDArray[np.float32]
    labels: Labels
    hints: Hints

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: npt.NDArray[Any]) -> Cases:
        return dataclasses.replace(
            self,
            logits=self.logits[rows],
            distance=None if self.distance is None else self.distance[rows],
            vision=self.vision[rows],
            labels=self.labels[rows],
            hints=self.hints[rows],
        )

    def divided(self) -> tuple[Cases, Cases]:
        """Those to tune on and those to prove on, with as large a share of the hints in both.

        Raises:
            ValueError: There are too few.
        """
        if len(self) < LEAST_CASES:
            raise ValueError(
                f"{len(self)} held-out images are too few to divide: give features of "
                f"{LEAST_CASES} that the head has not learnt from at the least"
            )
        hinted, silent = (np.flatnonzero(part) for part in (self.hints.given, ~self.hints.given))
        of_hinted = round(len(hinted) * TUNING_SHARE)
        of_silent = round(len(self) * TUNING_SHARE) - of_hinted
        tuning = np.sort(np.concatenate([hinted[:of_hinted], silent[:of_silent]]))
        return self[tuning], self[np.setdiff1d(np.arange(len(self)), tuning)]

    def posterior(self, temperature: float) -> Floats:
        """[n, K], the head's probabilities."""
        scores = torch.from_numpy(self.logits).double() / temperature
        probabilities: Floats = torch.softmax(scores, dim=1).numpy()
        return probabilities


def read_cases(bundle: Bundle, shown: ShownImages, table: FeatureTable, seed: int) -> Cases:
    """What the bundle's head says about held-out cases, one an image.

    Cases of one image are right or wrong together, and bounds count independent ones.

    Args:
        bundle: Its head judges.
        shown: What the head was shown.
        table: Features of any records; those of images that the head has learnt from are left out.
        seed: Of the order, and of which case of an image.

    Raises:
        ValueError: The features are of another spec or of experts that the bundle does not know,
            or the head has learnt from all of their images.
    """
    manifest = bundle.manifest
    _check_spec(manifest, table)
    known = {(expert.name, expert.digest): n for n, expert in enumerate(manifest.experts)}
    try:
        index = [known[expert.name, expert.digest] for expert in table.index.experts]
    except KeyError as error:
        raise ValueError(
            f"the features are of {error.args[0][0]} in a version that the bundle does not know; "
            "train and export a router for it"
        ) from None
    rows, source = _held_out(shown, table)
    # What an agent alone has labelled cannot be judged by.
    rows = rows[table.label.numpy()[rows] >= 0]
    noise = np.random.default_rng(seed)
    noise.shuffle(rows)
    _, first = np.unique(table.image.numpy()[rows], return_index=True)
    rows = rows[np.sort(first)]
    outputs = _judged(Head(bundle.head, manifest), table, rows)
    hinted = table.hinted.numpy()[rows]
    # The last one is for hints that are none.
    renumbered = np.array([*index, -1])
    return Cases(
        dataset_digest=table.index.dataset_digest,
        source=source,
        logits=np.stack([output.logits for output in outputs]),
        distance=_distances(outputs),
        vision=table.vision.numpy()[rows],
        labels=renumbered[table.label.numpy()[rows]],
        hints=Hints(renumbered[hinted], table.confidence.numpy()[rows].astype(np.float64)),
    )


def read_unknown(bundle: Bundle, table: FeatureTable) -> dict[str, Floats]:
    """How far the bundle's head finds pictures that no expert knows, by their source.

    Returns:
        Source to its distances, one a record; nothing where the head measures none.

    Raises:
        ValueError: The features are of another spec.
    """
    _check_spec(bundle.manifest, table)
    head, source = Head(bundle.head, bundle.manifest), table.source.numpy()
    found = {}
    for number, name in enumerate(table.index.sources):
        distances = _distances(_judged(head, table, np.flatnonzero(source == number)))
        if distances is not None:
            found[name] = distances
    return found


def _check_spec(manifest: Manifest, table: FeatureTable) -> None:
    if table.index.feature_spec.digest != manifest.feature_spec_digest:
        raise ValueError(
            "the features are not what the bundle's head reads; extract them from the executor "
            "that it was trained with"
        )


def _held_out(shown: ShownImages, table: FeatureTable) -> tuple[npt.NDArray[np.int64], str]:
    """Rows of images that the head has not learnt from, and what they are."""
    rows = (~shown.taught(table.image)).nonzero().flatten().numpy()
    if not len(rows):
        raise ValueError("the head has learnt from all of these screens: give features of others")
    if len(rows) < len(table):
        return rows, "those of the screens that the head has not learnt from"
    return rows, "screens that the head has not learnt from"


def _judged(head: Head, table: FeatureTable, rows: npt.NDArray[np.int64]) -> list[HeadOutput]:
    text, vision = table.text.numpy(), table.vision.numpy()
    outputs = []
    for batch in np.array_split(rows, max(1, len(rows) // _BATCH_ROWS)):
        for output in head.judge([Features(text[n], vision[n], "", "", "", "") for n in batch]):
            if not isinstance(output, HeadOutput):
                raise output
            outputs.append(output)
    return outputs


def _distances(outputs: list[HeadOutput]) -> Floats | None:
    found = [output.distance for output in outputs if output.distance is not None]
    return np.array(found) if found else None
