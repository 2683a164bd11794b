"""Which image goes to which split, and whether two files share one; knows no expert by name.

Records of one image belong together, so images are split, not records. Two names of the same
pixels are one image.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from training.data.images import content_digest, find_image
from training.data.origin import origin_of
from training.data.records import Refusal, iter_records
from training.run_file import digest_of

TRAIN, VALID, HELD_OUT = "train", "valid", "held_out"
SHARES: Mapping[str, float] = MappingProxyType({TRAIN: 0.8, VALID: 0.1, HELD_OUT: 0.1})
"""What part of each expert's images goes to which split."""


class LeakError(ValueError):
    """An image is in two files that must share none."""


def check_shares(shares: Mapping[str, float]) -> None:
    """Holds shares against what a split needs.

    Raises:
        ValueError: They are not positive, or do not add up to 1.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError("the shares must be positive and add up to 1")


def split_names(count: int, shares: Mapping[str, float]) -> list[str]:
    """The split of each of `count` things by number; every split gets at least one.

    Args:
        count: At least as many as there are shares.
        shares: Split name to its part.

    Returns:
        `count` names, those of one split together.
    """
    counts = {name: max(1, round(count * share)) for name, share in shares.items()}
    while (left := count - sum(counts.values())) != 0:
        largest = max(counts, key=lambda name: counts[name])
        # What is left over goes to the largest at once; what is too much is taken one by one.
        counts[largest] += max(left, -1)
    return [name for name, images in counts.items() for _ in range(images)]


def split_by_image(
    labels: Mapping[bytes, str], shares: Mapping[str, float], *, seed: int
) -> dict[bytes, str]:
    """Splits images so that every split has each label's share of them.

    Args:
        labels: Content digest to the label of most of the image's records.
        shares: Split name to its part.
        seed: Of the choice, which otherwise depends on contents only and on no name or order.

    Returns:
        Content digest to split.

    Raises:
        ValueError: A label has fewer images than there are splits.
    """
    check_shares(shares)
    by_label: dict[str, list[bytes]] = defaultdict(list)
    for digest, label in labels.items():
        by_label[label].append(digest)
    chosen: dict[bytes, str] = {}
    for label, digests in by_label.items():
        if len(digests) < len(shares):
            raise ValueError(
                f"{label} has {len(digests)} images for {len(shares)} splits: "
                "add images, or ask for fewer splits"
            )
        digests.sort(key=lambda digest: hashlib.sha256(b"%d/%b" % (seed, digest)).digest())
        chosen |= zip(digests, split_names(len(digests), shares), strict=True)
    return chosen


def split_by_source(
    sources: Mapping[bytes, Iterable[str]], shares: Mapping[str, float]
) -> dict[bytes, str]:
    """Splits whole sources; sources that share an image stay together.

    Args:
        sources: Content digest to the sources that have the image.
        shares: Split name to its part; parts of images can only be met as far as sources allow.

    Returns:
        Content digest to split.

    Raises:
        ValueError: There are fewer groups of sources than splits.
    """
    check_shares(shares)
    groups = connected(sources)
    if len(groups) < len(shares):
        raise ValueError(
            f"{len(groups)} sources that share no image cannot fill {len(shares)} splits: "
            "add sources, or split by image"
        )
    chosen: dict[bytes, str] = {}
    filled = dict.fromkeys(shares, 0)
    # The largest source first, each to the split that lacks most; the last ones fill what is empty.
    groups.sort(key=len, reverse=True)
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        empty = [name for name in shares if not filled[name]]
        lacking = {name: shares[name] * len(sources) - filled[name] for name in shares}
        name = max(empty if len(empty) == left else shares, key=lambda name: lacking[name])
        filled[name] += len(group)
        chosen |= dict.fromkeys(group, name)
    return chosen


def connected(sources: Mapping[bytes, Iterable[str]]) -> list[list[bytes]]:
    """Images in groups: in one are those with a source in common, directly or by others.

    Args:
        sources: Content digest to the names of whatever the image comes from, at least one.
    """
    group_of: dict[str, set[str]] = {}
    for names in sources.values():
        merged = set().union(*(group_of.get(name, {name}) for name in names))
        group_of |= dict.fromkeys(merged, merged)
    groups: dict[int, list[bytes]] = defaultdict(list)
    for digest, names in sources.items():
        groups[id(group_of[next(iter(names))])].append(digest)
    return list(groups.values())


def shared_content(
    files: Sequence[Path], *, strict: bool = True, advance: Callable[[], None] | None = None
) -> dict[tuple[Path, Path], int]:
    """Counts the images that two files have in common, by content or by what they were made of.

    Args:
        files: JSONL files of records.
        strict: Refuse images that cannot be read; else pass over them.
        advance: Called after each record.

    Returns:
        Pair of files, in their order, to the number of images both have; only pairs that have any.

    Raises:
        ValueError: A file or, if strict, an image cannot be read.
    """
    images = {file: _images(file, strict=strict, advance=advance) for file in files}
    shared = {}
    for first, second in itertools.combinations(files, 2):
        held = set().union(*images[second].values())
        if count := sum(not held.isdisjoint(marks) for marks in images[first].values()):
            shared[first, second] = count
    return shared


def check_leaks(
    files: Sequence[Path],
    *,
    together: Collection[Path] = (),
    advance: Callable[[], None] | None = None,
) -> None:
    """Fails if two files share an image, under whatever names.

    Args:
        files: JSONL files of records that must share none.
        together: Those of one split, which may share images with each other.
        advance: Called after each record.

    Raises:
        LeakError: They do; the text names the files and how many images.
        ValueError: An image cannot be read, so nobody can say.
    """
    for (first, second), count in shared_content(files, advance=advance).items():
        if first in together and second in together:
            continue
        raise LeakError(
            f"{count} images of {first.name} are in {second.name} too, by content: "
            "split by image and not by record (molora data import)"
        )


def _images(
    file: Path, *, strict: bool, advance: Callable[[], None] | None
) -> dict[bytes, set[bytes]]:
    """Content digest of each image to all that it is known by: itself, its files and origins."""
    found: dict[str, tuple[bytes, str] | None] = {}
    images: dict[bytes, set[bytes]] = {}
    for record in iter_records(file):
        if advance:
            advance()
        if isinstance(record, Refusal):
            continue
        try:
            if record.image not in found:
                found[record.image] = None
                path = find_image(record.image, [file.parent])
                found[record.image] = content_digest(path), digest_of(path)
            if known := found[record.image]:
                content, digest = known
                marks = images.setdefault(content, {content})
                marks.add(bytes.fromhex(origin_of(record, digest)))
        except ValueError as error:
            if strict:
                raise ValueError(f"{file.name} cannot be checked for leaks: {error}") from None
    return images
