"""Features of a data set, over a real socket, into a cache that stage 1 can read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from molora_client import Molora
from router_service.bundle import load_bundle
from service_chassis.errors import InvalidArgument
from tests.support import router_bundle
from tests.support.stub_executor import StubExecutor, serving
from training.data.importer import import_data
from training.extraction import cache_features
from training.feature_index import FeatureIndex
from training.features import load_features
from training.run_file import digest_of
from training.stage1_config import Stage1Run
from training.stage1_run import run_stage1

NAMES = [expert.name for expert in router_bundle.EXPERTS]


def write_records(root: Path, adapters: list[str | None], *, images_each: int = 1) -> Path:
    """Two records on every image, all of them different; `images/` holds the images."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, adapter in enumerate(adapters):
        for image in range(images_each):
            name = f"images/{number}-{image}.png"
            paint(root / name, images_each * number + image)
            for question in range(2):
                row = {
                    "id": f"{number}-{image}-{question}",
                    "image": name,
                    "conversations": [
                        {"from": "human", "value": f"<image>\nClick in the {adapter}"},
                        {"from": "gpt", "value": _ANSWER},
                    ],
                    "metadata": {},
                }
                rows.append(row | ({"adapter": adapter} if adapter else {}))
    # Questions of one image are not neighbours in the file.
    rows.sort(key=lambda row: str(row["id"])[-1])
    path = root / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


_CALL = {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [1, 2]}}
_ANSWER = f"<tool_call>\n{json.dumps(_CALL)}\n</tool_call>"


async def cache(records: Path, address: str, out: Path) -> FeatureIndex:
    return await asyncio.to_thread(extract, records, address, out)


def extract(records: Path, address: str, out: Path, *, unknown: bool = False) -> FeatureIndex:
    with Molora(executor=address) as client:
        return cache_features(records, records.parent, client, out, unknown=unknown, progress=False)


async def test_every_record_is_extracted_and_every_screen_is_sent_once(tmp_path: Path) -> None:
    stub = StubExecutor()
    records = write_records(tmp_path, ["claim-window", "calendar"], images_each=2)
    async with serving(stub) as address:
        index = await cache(records, address, tmp_path / "features")
    assert index.names == ("calendar", "claim-window")
    assert index.feature_spec == router_bundle.SPEC
    assert index.expert_set == "set-1"
    table = load_features(tmp_path / "features")
    assert table.index == index
    assert table.label.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert table.text[0].tolist() == [0.0, 0.0, 9.0, 0.0]
    assert table.vision.shape == (8, 3)
    assert len(set(table.image.tolist())) == 4
    assert table.image.tolist()[0::2] == table.image.tolist()[1::2]
    sent = [request.screen.WhichOneof("source") for request in stub.seen]
    assert Counter(sent) == {"data": 4, "context_id": 4}


class _Waits(StubExecutor):
    """Answers a slow screen's calls last, and remembers how many it was asked at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = b""
        self.now = self.most = 0

    async def ExtractFeatures(self, request: Any, context: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.2 if request.screen.data == self.slow else 0.02)
            return await super().ExtractFeatures(request, context)
        finally:
            self.now -= 1


async def test_images_are_looked_at_together_and_stay_in_order(tmp_path: Path) -> None:
    stub = _Waits()
    names = ["calendar", "claim-window", "chart", "claim-window", "calendar", "chart"]
    records = write_records(tmp_path, names)
    stub.slow = (tmp_path / "images/0-0.png").read_bytes()
    async with serving(stub) as address:
        index = await cache(records, address, tmp_path / "features")
    assert stub.most == 4
    table = load_features(tmp_path / "features")
    assert [index.names[label] for label in table.label.tolist()[::2]] == names
    assert table.text.argmax(1).tolist() == [NAMES.index(name) for name in names for _ in range(2)]


async def test_a_screen_that_the_executor_refuses_is_named(tmp_path: Path) -> None:
    stub = StubExecutor()
    stub.fail = InvalidArgument("UNREADABLE_SCREEN", "The screen cannot be read; send another.")
    async with serving(stub) as address:
        with pytest.raises(
            ValueError, match=r"0-0-0 with images/0-0\.png has no features: The scr"
        ):
            await cache(write_records(tmp_path, ["calendar"]), address, tmp_path / "features")


async def test_changed_screens_belong_to_the_one_that_they_were_made_of(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar", "calendar", "chart"])
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    origin = hashlib.sha256((tmp_path / "images/0-0.png").read_bytes()).hexdigest()
    for row in rows:
        if row["image"] == "images/1-0.png":
            row["metadata"]["changed_from"] = origin
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with serving(StubExecutor()) as address:
        await cache(records, address, tmp_path / "features")
    images = load_features(tmp_path / "features").image.tolist()
    assert len(set(images[:4])) == 1
    assert len(set(images)) == 2


async def test_what_an_extraction_could_not_use_is_found_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    """On the last record of many, in each part of it that is read."""
    records = write_records(tmp_path, ["calendar", "chart"], images_each=2)
    whole = records.read_text()
    *first, last = whole.splitlines(keepends=True)
    assert json.loads(last)["image"] == "images/1-1.png"
    stub = StubExecutor()

    async def check_refused(reason: str) -> None:
        async with serving(stub) as address:
            with pytest.raises(ValueError, match=rf"of 8 .* with images/1-1.png: .*{reason}"):
                await cache(records, address, tmp_path / "features")
        assert not stub.seen
        assert not (tmp_path / "features" / "features.json").exists()

    for metadata, reason in (
        ({"changed_from": "screen 7"}, "changed_from is no sha256"),
        ({"agent_expert": "phone-app"}, "agent_expert is none of calendar, chart"),
        ({"agent_expert": "chart", "agent_confidence": "high"}, "agent_confidence is no number"),
    ):
        row = json.dumps(json.loads(last) | {"metadata": metadata})
        records.write_text("".join([*first, row]))
        await check_refused(reason)
    records.write_text(whole)
    (tmp_path / "images/1-1.png").write_bytes(b"pixels")
    await check_refused("the image cannot be read")


async def test_a_missing_image_is_missed_before_anything_is_asked(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar", "chart"], images_each=2)
    (tmp_path / "images/1-0.png").unlink()
    stub = StubExecutor()
    async with serving(stub) as address:
        with pytest.raises(ValueError, match=r"2 of 8 .* 1-0-0 with images/1-0.png: .*missing"):
            await cache(records, address, tmp_path / "features")
    assert not stub.seen
    assert not (tmp_path / "features").exists()


async def test_a_shard_is_no_larger_than_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_records(tmp_path, ["calendar", "chart"], images_each=2)
    # A record of the stub has 7 numbers of 4 bytes.
    monkeypatch.setattr("training.extraction._SHARD_BYTES", 3 * 7 * 4)
    async with serving(StubExecutor()) as address:
        index = await cache(records, address, tmp_path / "features")
    assert len(index.shards) == 3
    assert len(load_features(tmp_path / "features")) == 8


async def test_an_agents_hints_are_kept(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar", "chart"])
    hints = [
        {"agent_expert": "chart", "agent_confidence": 0.75},
        {"agent_expert": "calendar"},
        {},
        {},
    ]
    write_hints(records, hints)
    async with serving(StubExecutor()) as address:
        await cache(records, address, tmp_path / "features")
    table = load_features(tmp_path / "features")
    # The records of an image are neighbours in the cache.
    assert table.hinted.tolist() == [1, -1, 0, -1]
    assert table.confidence.tolist() == pytest.approx(
        [0.75, math.nan, math.nan, math.nan], nan_ok=True
    )


async def test_an_agents_hint_stands_in_for_a_label(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar", "chart", None])
    write_hints(records, [{}, {}, {"agent_expert": "chart"}, {}, {}, {"agent_expert": "calendar"}])
    async with serving(StubExecutor()) as address:
        await cache(records, address, tmp_path / "features")
    table = load_features(tmp_path / "features")
    assert table.label.tolist() == [0, 0, 1, 1, -1, -1]
    assert table.hinted.tolist() == [-1, -1, -1, -1, 1, 0]
    write_hints(records, [{}] * 6)
    async with serving(StubExecutor()) as address:
        with pytest.raises(ValueError, match="2 records have no adapter"):
            await cache(records, address, tmp_path / "none")
    alone = write_records(tmp_path / "alone", [None])
    write_hints(alone, [{"agent_expert": "chart"}] * 2)
    async with serving(StubExecutor()) as address:
        with pytest.raises(ValueError, match="hints alone cannot be checked"):
            await cache(alone, address, tmp_path / "none")


def write_hints(records: Path, hints: list[dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    for row, hint in zip(rows, hints, strict=True):
        said = ("agent_expert", "agent_confidence")
        kept = {name: value for name, value in row["metadata"].items() if name not in said}
        row["metadata"] = kept | hint
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))


async def test_from_the_users_rows_to_a_bundle_that_learnt_from_an_agent_as_well(
    tmp_path: Path,
) -> None:
    """Import, one file of both, features, stage 1: what OPERATIONS tells to do."""
    source, data = tmp_path / "source", tmp_path / "data"
    rows = []
    for number in range(30):
        name, image = ("calendar", "chart")[number % 2], f"{number}.png"
        paint(source / image, number)
        agent = {"agent_expert": name, "agent_confidence": 0.9} if number >= 20 else {}
        row = {
            "id": f"r{number}",
            "image": image,
            "conversations": [
                {"from": "human", "value": f"<image>\nClick in the {name}"},
                {"from": "gpt", "value": _ANSWER},
            ],
            "metadata": {"task_type": "none that a rule knows", **agent},
        }
        rows.append(row if agent else row | {"adapter": name})
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = import_data([source], data, shares={"train": 1.0})
    assert imported.records == {"train": 20, "hinted": 10}
    both = data / "router.jsonl"
    both.write_text("".join((data / f"{name}.jsonl").read_text() for name in imported.records))
    async with serving(StubExecutor()) as address:
        await cache(both, address, tmp_path / "features")
    flags = ["--features", str(tmp_path / "features"), "--out", str(tmp_path / "router")]
    run = Stage1Run.read([*flags, "--max-epochs", "40", "--width", "16"], "molora train stage1")
    result, bundle = run_stage1(run, progress=False)
    assert result.accuracy["held_out"] == 1
    # Only labels are measured on.
    assert sum(result.cases.values()) == 20
    assert load_bundle(bundle).manifest.provenance.dataset_digest == digest_of(both)


def paint(path: Path, number: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (20, 10), (number, 0, 0)).save(path)


async def test_an_expert_that_is_not_loaded(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar", "desktop"])
    async with serving(StubExecutor()) as address:
        with pytest.raises(ValueError, match="not loaded: desktop"):
            await cache(records, address, tmp_path / "features")
    assert not (tmp_path / "features" / "features.json").exists()


async def test_a_record_without_a_label(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar", None])
    async with serving(StubExecutor()) as address:
        with pytest.raises(ValueError, match="2 records have no adapter"):
            await cache(records, address, tmp_path / "features")


async def test_rows_that_are_no_records_are_counted(tmp_path: Path) -> None:
    records = write_records(tmp_path, ["calendar"])
    with records.open("a") as file:
        file.write('{"id": "x"}\nno json\n')
    async with serving(StubExecutor()) as address:
        index = await cache(records, address, tmp_path / "features")
    assert index.refused_rows == 2
    records.write_text("no json\n")
    with pytest.raises(ValueError, match="no record: 1 rows were refused"):
        extract(records, "127.0.0.1:1", tmp_path / "none")


async def test_an_executor_that_changes_in_between(tmp_path: Path) -> None:
    class Changing(StubExecutor):
        async def ExtractFeatures(self, request, context):
            if len(self.seen) == 2:
                self.expert_set = "set-2"
            return await super().ExtractFeatures(request, context)

    records = write_records(tmp_path, ["calendar", "chart"])
    async with serving(Changing()) as address:
        with pytest.raises(ValueError, match="changed while"):
            await cache(records, address, tmp_path / "features")
    with pytest.raises(ValueError, match="no whole feature cache"):
        load_features(tmp_path / "features")


async def test_what_no_expert_knows_has_no_label(tmp_path: Path) -> None:
    records, out = write_records(tmp_path, ["desktop", None]), tmp_path / "unknown"
    async with serving(StubExecutor()) as address:
        await asyncio.to_thread(extract, records, address, out, unknown=True)
    table = load_features(out)
    assert table.index.experts == ()
    assert table.label.tolist() == [-1] * 4
    assert len(set(table.image.tolist())) == 2
