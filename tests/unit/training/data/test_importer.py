"""The user's datasets as they are: every form and quirk, what is refused, and no leak."""

import json
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data.calls import ToolCall, format_calls
from training.data.importer import import_data, source_of
from training.data.labels import read_rules
from training.data.records import new_record, read_records
from training.data.split import LeakError
from training.data.stats import collect_stats
from training.run_file import digest_of

CLICK = ToolCall.computer_use("left_click", coordinate=[498, 385])
HALVES = {"train": 0.5, "held_out": 0.5}


def paint(path, colour, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (colour % 256, colour // 256, 7)).save(path, **how)


def row(number, image, *, form="new", task_type="click_calendar_day", **parts):
    turns = [
        {"from": "human", "value": "<image>\nClick December 3 in the calendar"},
        {"from": "gpt", "value": ("\n" if form == "old" else "") + format_calls([CLICK])},
    ]
    if form == "old":
        turns.insert(0, {"from": "system", "value": "You click."})
    return {
        "id": f"r{number}",
        "image": image,
        "conversations": turns,
        "metadata": {"task_type": task_type, "real_coords": [1, 2], "tolerance": 12, "odd": "x"},
        **parts,
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def case(number, image, **parts):
    return {
        "test_id": number,
        "screenshot": image,
        "prompt": "Wait",
        "expected_action": {"action": "wait", "duration": 3.0},
        "tolerance": 10,
        "metadata": {"real_coords": None, "task_type": "click_top_buttons"},
        **parts,
    }


@pytest.fixture
def calendar(tmp_path):
    """A folder as the user has it: two files, six images, several records an image, a test."""
    folder = tmp_path / "calendar_v2"
    images = [f"images/screen_{number}.png" for number in range(6)]
    for number, image in enumerate(images):
        paint(folder / image, number)
    rows = [row(n, images[n % 6], form="old" if n % 2 else "new", extra=n) for n in range(18)]
    write(folder / "train.jsonl", rows[:10])
    write(folder / "more.jsonl", rows[10:])
    paint(folder / "images" / "screen_90.png", 90)
    (folder / "test").mkdir()
    (folder / "test" / "test.json").write_text(json.dumps([case(1, "images/screen_90.png")]))
    return folder


def rows_of(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def test_a_folder_of_both_forms_and_tests_becomes_one_set(calendar, tmp_path):
    out = tmp_path / "out"
    seen = []
    made = import_data([calendar], out, shares=HALVES, progress=lambda *at: seen.append(at))
    assert seen == [(done, 38) for done in (*range(1, 39), 38)], "read, and checked"
    assert made.records == {"train": 9, "held_out": 9, "test": 1}
    assert made.images == {"train": 3, "held_out": 3, "test": 1}
    assert made.adapters["test"] == {"calendar": 1}
    assert [dict(source.forms) for source in made.sources] == [
        {"old": 4, "new": 4}, {"new": 5, "old": 5}, {"test": 1},
    ]  # fmt: skip
    assert not any(source.skipped for source in made.sources)
    for name in made.records:
        found = read_records(out / f"{name}.jsonl")
        assert found.refused == ()
        for record in found.records:
            assert (out / record.image).is_file()
            assert source_of(record).startswith("calendar_v2-")
    (waiting,) = read_records(out / "test.jsonl").records
    assert waiting.calls == (ToolCall.computer_use("wait", time=3.0),)
    assert waiting.tolerance == (10, 10)


def test_rows_keep_everything_but_their_images_place(calendar, tmp_path):
    out = tmp_path / "out"
    import_data([calendar / "train.jsonl"], out, shares=HALVES)
    written = {r["id"]: r for name in HALVES for r in rows_of(out, name)}
    for line in (calendar / "train.jsonl").read_text().splitlines():
        before = json.loads(line)
        after = written[before["id"]]
        assert after.pop("adapter") == "calendar"
        assert after.pop("image") == before.pop("image").replace("images/", "images/train/")
        assert after["metadata"].pop("source") == "train"
        assert after == before


def test_what_is_refused_is_counted_with_its_reason(calendar, tmp_path):
    good = [row(n, f"images/screen_{n}.png") for n in range(2)]
    (calendar / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    whole = (calendar / "images" / "screen_0.png").read_bytes()
    (calendar / "images" / "short.png").write_bytes(whole[: len(whole) // 2])
    bad = [
        "{",
        "[]",
        row(3, "images/gone.png"),
        row(4, "images/broken.png"),
        row(5, "images/short.png"),
        row(6, "images/screen_0.png", task_type="scroll-grid"),
        row(7, "images/screen_0.png", conversations=[]),
        row(8, "../images/screen_0.png"),
        row(9, "images/screen_0.png", adapter=2),
    ]
    foreign = row(9, "images/other.png", task_type="odd")
    paint(calendar / "images" / "other.png", 500)
    source = write(calendar / "mixed.jsonl", [*good, *bad, "", foreign])
    made = import_data([source], tmp_path / "out", shares=HALVES)
    assert sum(made.records.values()) == 2
    rows = {reason: (s.count, s.rows) for reason, s in made.sources[0].skipped.items()}
    told = {reason.split(":")[0]: rows for reason, rows in rows.items()}
    assert told == {
        "the line is not JSON": (1, [3]),
        "a row must be a JSON object": (1, [4]),
        "the image is missing": (1, [5]),
        "the image cannot be read": (2, [6, 7]),
        "label rules contradict each other": (1, [8]),
        "`conversations` must be [system,] human, gpt": (1, [9]),
        "`image` must be one relative path without `..`": (1, [10]),
        "no label rule matches": (1, [13]),
        "`adapter` must be a name": (1, [11]),
    }
    assert "December" not in str(rows)


def test_only_the_first_rows_of_a_reason_are_named(calendar, tmp_path):
    source = write(calendar / "m.jsonl", [row(0, "images/screen_0.png"), *["{"] * 30])
    made = import_data([source], tmp_path / "out", shares={"all": 1.0})
    (skipped,) = made.sources[0].skipped.values()
    assert (skipped.count, skipped.rows) == (30, list(range(2, 12)))


def test_refused_cases_keep_their_numbers(calendar, tmp_path):
    cases = [
        3,
        case(2, "images/screen_0.png"),
        case(3, "images/gone.png"),
        {},
        case(5, "images/screen_1.png"),
    ]
    path = calendar / "test" / "test.json"
    path.write_text(json.dumps(cases))
    made = import_data([path], tmp_path / "out")
    assert made.records == {"test": 2}
    assert {number for s in made.sources[0].skipped.values() for number in s.rows} == {1, 3, 4}


def test_one_picture_under_two_names_is_one_image(tmp_path):
    folder = tmp_path / "twice"
    for number in range(4):
        paint(folder / f"images/screen_{number}.png", number)
        paint(folder / f"images/screen_{number}_copy.png", number, compress_level=0)
        image = Image.open(folder / f"images/screen_{number}.png").convert("RGBA")
        image.save(folder / f"images/screen_{number}_alpha.png")
    names = [f"images/screen_{n}{kind}.png" for kind in ("", "_copy", "_alpha") for n in range(4)]
    source = write(folder / "a.jsonl", [row(n, name) for n, name in enumerate(names)])
    out = tmp_path / "out"
    made = import_data([source], out, shares=HALVES)
    assert made.images == {"train": 2, "held_out": 2}
    assert made.records == {"train": 6, "held_out": 6}
    assert len(list(out.rglob("*.png"))) == 4


def test_two_pictures_whose_paths_become_one_are_both_kept(tmp_path):
    """`images/` is what the paths have in common and not a part of the name."""
    names = ["images/screen_1.png", "screen_1.png", "./images/./screen_2.png"]
    for number, name in enumerate(names):
        paint(tmp_path / "in" / name, number)
    source = write(tmp_path / "in" / "a.jsonl", [row(n, name) for n, name in enumerate(names)])
    out = tmp_path / "out"
    import_data([source], out, shares={"all": 1.0})
    records = read_records(out / "all.jsonl").records
    colours = {r.id: Image.open(out / r.image).getpixel((0, 0))[0] for r in records}
    assert colours == {"r0": 0, "r1": 1, "r2": 2}
    assert len({r.image for r in records}) == 3


@given(
    st.dictionaries(
        st.sampled_from(["id", "image", "conversations", "metadata", "adapter"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.just("images/" + "a" * 300),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=6,
        ),
    )
)
@settings(max_examples=25, deadline=None)
def test_no_row_stops_the_import(changes):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paint(root / "images/screen_1.png", 1)
        whole = row(1, "images/screen_1.png")
        source = write(root / "a.jsonl", [whole, {**whole, **changes}])
        made = import_data([source], root / "out", shares={"all": 1.0})
        left_out = sum(s.count for s in made.sources[0].skipped.values())
        assert made.records["all"] + left_out == 2


@pytest.mark.parametrize("name", ["screen_3.png", "screen_90.png"])
def test_a_test_image_among_the_records_is_an_error_under_any_name(calendar, tmp_path, name):
    """`screen_90` looks like the tests' own, but has the pixels of `screen_3`."""
    if name == "screen_90.png":
        paint(calendar / "images" / name, 3, compress_level=1)
    (calendar / "test" / "test.json").write_text(json.dumps([case(1, f"images/{name}")]))
    with pytest.raises(LeakError, match="1 images of test files are in record files too"):
        import_data([calendar], tmp_path / "out", shares=HALVES)
    assert not (tmp_path / "out").exists()
    made = import_data([calendar], tmp_path / "out", shares=HALVES, drop_tested=True)
    skipped = [s.skipped.get("its image is in a test file") for s in made.sources]
    assert sum(s.count for s in skipped if s) == 3
    assert sum(made.records.values()) == 15 + 1
    files = [tmp_path / "out" / f"{split}.jsonl" for split in made.records]
    assert collect_stats(files).shared_images == 0


@pytest.mark.parametrize("by_source", [False, True])
def test_changed_screens_stay_with_the_one_that_they_were_made_of(tmp_path, by_source):
    """However many there are, and in whichever source; one that only an agent named as well."""
    files, made_of = [], {}
    for number in range(6):
        folder = tmp_path / f"s{number}"
        rows = []
        for copy in range(4):
            name = f"images/plain_{number}_{copy}.png"
            paint(folder / name, 10 * number + copy)
            meta = dict(row(0, name)["metadata"])
            if copy:
                meta["changed_from"] = made_of[number]
            else:
                made_of[number] = digest_of(folder / name)
            rows.append(row(copy, name, metadata=meta))
        rows[3] = {**hinted(3, rows[3]["image"], agent_expert="calendar"), "adapter": None}
        rows[3]["metadata"]["changed_from"] = made_of[number]
        files.append(write(folder / f"part{number}.jsonl", rows))
    out = tmp_path / "out"
    made = import_data(files, out, shares=HALVES, by_source=by_source)
    assert made.images["train"] == made.images["held_out"] == 9
    origins = [
        {number_of(r) for r in read_records(out / f"{split}.jsonl").records} for split in HALVES
    ]
    assert not origins[0] & origins[1]
    alone = {number_of(r) for r in read_records(out / "hinted.jsonl").records}
    assert alone == origins[0]


def number_of(record):
    return record.image.rpartition("plain_")[2].partition("_")[0]


def test_a_test_image_that_was_changed_is_an_error_too(calendar, tmp_path):
    paint(calendar / "images/changed.png", 999)
    origin = digest_of(calendar / "images/screen_3.png")
    (calendar / "test" / "test.json").write_text(json.dumps([case(1, "images/screen_3.png")]))
    meta = {**row(0, "")["metadata"], "changed_from": origin}
    write(calendar / "more.jsonl", [row(77, "images/changed.png", metadata=meta)])
    with pytest.raises(LeakError, match="2 images of test files are in record files too"):
        import_data([calendar], tmp_path / "out", shares=HALVES)


def test_a_split_by_source_keeps_sources_whole(tmp_path):
    files = []
    for source in range(4):
        folder = tmp_path / f"s{source}"
        for number in range(3):
            paint(folder / f"images/screen_{number}.png", 10 * source + number)
        rows = [row(n, f"images/screen_{n}.png") for n in range(3)]
        files.append(write(folder / f"part{source}.jsonl", rows))
    out = tmp_path / "out"
    made = import_data(files, out, shares=HALVES, by_source=True)
    assert made.images == {"train": 6, "held_out": 6}
    sources = [{source_of(r) for r in read_records(out / f"{s}.jsonl").records} for s in HALVES]
    assert not sources[0] & sources[1]
    assert sorted(sources[0] | sources[1]) == ["part0", "part1", "part2", "part3"]


@pytest.mark.parametrize("by_source", [False, True])
def test_sources_that_share_their_images_are_told_apart_and_split_together(tmp_path, by_source):
    """The user's rewritten prompts are on the screens of the original ones."""
    folder = tmp_path / "calendar"
    images = [f"images/screen_{number}.png" for number in range(4)]
    for number, image in enumerate(images):
        paint(folder / image, number)
        paint(tmp_path / "other" / image, 50 + number)
    for name in ("original", "rewritten"):
        write(folder / f"{name}.jsonl", [row(f"-{name}-{n}", i) for n, i in enumerate(images)])
    write(tmp_path / "other" / "other.jsonl", [row(f"-other-{n}", i) for n, i in enumerate(images)])
    files = [folder / "original.jsonl", folder / "rewritten.jsonl", tmp_path / "other/other.jsonl"]
    out = tmp_path / "out"
    import_data(files, out, shares=HALVES, by_source=by_source)
    records = {name: read_records(out / f"{name}.jsonl").records for name in HALVES}
    for record in (*records["train"], *records["held_out"]):
        assert source_of(record) == record.id.split("-")[1]
    images_of = {name: {record.image for record in found} for name, found in records.items()}
    assert not images_of["train"] & images_of["held_out"]
    sources = {name: {source_of(record) for record in found} for name, found in records.items()}
    if by_source:
        assert sources == {"train": {"original", "rewritten"}, "held_out": {"other"}}


def test_a_source_that_a_row_states_stays(tmp_path):
    paint(tmp_path / "a" / "0.png", 0)
    meta = row(0, "")["metadata"]
    stated = [{**meta, "source": value} for value in ("rewritten", None)]
    rows = [row(n, "0.png", metadata=metadata) for n, metadata in enumerate([*stated, meta])]
    write(tmp_path / "a" / "rows.jsonl", rows)
    import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    records = read_records(tmp_path / "out" / "train.jsonl").records
    assert [record.metadata["source"] for record in records] == ["rewritten", "a-rows", "a-rows"]
    assert [source_of(record) for record in records] == ["rewritten", "a-rows", "a-rows"]


def test_an_import_from_before_sources_were_written_has_those_of_its_images():
    before = new_record("r", "images/original/1.png", "Click", [CLICK], {})
    assert source_of(before) == "original"
    assert source_of(new_record("r", "1.png", "Click", [CLICK], {})) is None


def test_further_rules_label_what_the_built_in_ones_do_not(calendar, tmp_path):
    for number in range(2):
        paint(calendar / f"images/login_{number}.png", 700 + number)
    rows = [row(n, f"images/login_{n}.png", task_type="select-user") for n in range(2)]
    source = write(calendar / "login.jsonl", rows)
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{label: login-window, task_type: select-user}]")
    made = import_data([source], tmp_path / "out", rules=read_rules(rules), shares=HALVES)
    assert made.adapters == {"train": {"login-window": 1}, "held_out": {"login-window": 1}}


def test_what_only_an_agent_named_is_kept_for_stage_1_and_never_held_out(calendar, tmp_path):
    hint = {"agent_expert": "calendar", "agent_confidence": 0.7}
    paint(calendar / "images" / "other.png", 99)
    unknown = {"task_type": "?", **hint}
    rows = [row(90, "images/other.png", metadata=unknown)]
    # On images that labelled rows have too: some of them are held out.
    for number in range(6):
        name = f"images/plain_{number}.png"
        paint(calendar / name, 200 + number)
        rows += [row(100 + number, name), row(200 + number, name, metadata=unknown)]
    write(calendar / "hints.jsonl", rows)
    out = tmp_path / "out"
    imported = import_data([calendar / "hints.jsonl"], out, shares=HALVES)
    assert list(imported.records) == ["train", "held_out", "hinted"]
    kept = rows_of(out, "hinted")
    assert imported.records["hinted"] == len(kept) == 4
    assert all("adapter" not in row and row["metadata"].items() > unknown.items() for row in kept)
    assert all((out / row["image"]).is_file() for row in kept)
    held_out = {row["image"] for row in rows_of(out, "held_out")}
    assert not held_out & {row["image"] for row in kept}
    [source] = imported.sources
    reasons = {reason: skipped.count for reason, skipped in source.skipped.items()}
    assert reasons == {"only an agent names it, and its image is in held_out": 3}


def hinted(number, image, **hint):
    return row(number, image, metadata={"task_type": "?", "agent_expert": "calendar", **hint})


def why_left_out(imported):
    return {
        reason: skipped.count
        for source in imported.sources
        for reason, skipped in source.skipped.items()
    }


def test_a_hint_that_stage_1_could_not_read_costs_its_row_alone(tmp_path):
    for number in range(3):
        paint(tmp_path / "a" / f"{number}.png", number)
    rows = [
        row(0, "0.png"),
        hinted(1, "1.png"),
        hinted(2, "2.png", agent_expert="desktop"),
        hinted(3, "2.png", agent_expert=7),
        hinted(4, "2.png", agent_confidence=1.5),
    ]
    write(tmp_path / "a" / "rows.jsonl", rows)
    imported = import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    assert [row["id"] for row in rows_of(tmp_path / "out", "hinted")] == ["r1"]
    reasons = why_left_out(imported)
    assert list(reasons.values()) == [1, 1, 1]
    assert all("agent_" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        ({"agent_expert": "phone-app"}, "agent_expert is none of calendar; leave out"),
        ({"agent_expert": 7}, "agent_expert is no name"),
        ({"agent_expert": "calendar", "agent_confidence": "high"}, "agent_confidence is no number"),
        ({"agent_confidence": 0.7}, "agent_expert is no name"),
    ],
)
def test_a_labelled_row_with_a_hint_that_features_could_not_read_is_left_out(
    calendar, tmp_path, hint, reason
):
    """Of records and of tests."""
    meta = {**row(0, "")["metadata"], **hint}
    read = {**row(0, "")["metadata"], "agent_expert": "calendar", "agent_confidence": 1}
    rows = [
        row(1, "images/screen_0.png"),
        row(2, "images/screen_1.png", metadata=meta),
        row(3, "images/screen_2.png", metadata=read),
    ]
    source = write(calendar / "hints.jsonl", rows)
    test = calendar / "test" / "test.json"
    cases = [case(n, f"images/screen_{3 + n}.png") for n in range(2)]
    cases[1]["metadata"] |= hint
    test.write_text(json.dumps(cases))
    imported = import_data([source, test], tmp_path / "out", shares={"train": 1.0})
    assert imported.records == {"train": 2, "test": 1}
    assert imported.images == {"train": 2, "test": 1}
    assert imported.adapters["train"] == {"calendar": 2}
    left_out = [(s.count, s.rows) for source in imported.sources for s in source.skipped.values()]
    assert left_out == [(1, [2]), (1, [2])]
    assert all(reason in found for found in why_left_out(imported))


def test_no_hint_names_an_expert_that_only_tests_have(tmp_path):
    for number in range(3):
        paint(tmp_path / "a" / f"{number}.png", number)
    rows = [row(0, "0.png"), hinted(1, "1.png", agent_expert="desktop")]
    write(tmp_path / "a" / "rows.jsonl", rows)
    (tmp_path / "a" / "test.json").write_text(json.dumps([case(1, "2.png", adapter="desktop")]))
    imported = import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    assert imported.records == {"train": 1, "hinted": 0, "test": 1}
    assert [reason.split(";")[0] for reason in why_left_out(imported)] == [
        "a record's agent_expert is none of calendar"
    ]


def test_no_hint_names_an_expert_that_is_only_held_out(tmp_path):
    """A split by source gives one expert's source to the records that are measured on."""
    for at, (name, adapter) in enumerate((("many", "calendar"), ("few", "desktop"))):
        for number in range(4 if name == "many" else 1):
            paint(tmp_path / name / f"{number}.png", 10 * at + number)
        rows = [row(n, f"{n}.png", adapter=adapter) for n in range(4 if name == "many" else 1)]
        write(tmp_path / name / "rows.jsonl", rows)
    with (tmp_path / "many" / "rows.jsonl").open("a") as lines:
        lines.write(json.dumps(hinted(9, "0.png", agent_expert="desktop")) + "\n")
        lines.write(json.dumps(hinted(10, "1.png")) + "\n")
    imported = import_data(
        [tmp_path / "many", tmp_path / "few"],
        tmp_path / "out",
        shares={"train": 0.8, "held_out": 0.2},
        by_source=True,
    )
    assert imported.records == {"train": 4, "held_out": 1, "hinted": 1}
    assert imported.adapters["held_out"] == {"desktop": 1}
    assert why_left_out(imported) == {
        "a record's agent_expert is none of calendar; leave out what an agent says of other "
        "experts": 1
    }


def test_a_label_whose_rows_are_all_left_out_can_be_named_by_no_hint(tmp_path):
    for number in range(3):
        paint(tmp_path / "a" / f"{number}.png", number)
    rows = [
        row(0, "0.png"),
        {**hinted(1, "1.png", agent_expert="phone-app"), "adapter": "desktop"},
        {**hinted(2, "2.png", agent_expert="desktop"), "adapter": "calendar"},
    ]
    write(tmp_path / "a" / "rows.jsonl", rows)
    imported = import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    assert [row["id"] for row in rows_of(tmp_path / "out", "train")] == ["r0"]
    assert list(why_left_out(imported).values()) == [2]


def test_hints_that_leave_nothing_to_import_are_an_error(tmp_path):
    paint(tmp_path / "a" / "0.png", 0)
    rows = [{**hinted(0, "0.png", agent_expert="phone-app"), "adapter": "calendar"}]
    write(tmp_path / "a" / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="none of 1 rows can be imported, 1 of them because a"):
        import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    assert not list(tmp_path.glob("out*"))


def test_tests_alone_are_imported_with_what_agents_said_of_them(tmp_path):
    paint(tmp_path / "0.png", 0)
    said = case(1, "0.png")
    said["metadata"] |= {"agent_expert": "calendar", "agent_confidence": 0.5}
    (tmp_path / "test.json").write_text(json.dumps([said]))
    assert import_data([tmp_path / "test.json"], tmp_path / "out").records == {"test": 1}


@pytest.mark.parametrize("with_tests", [False, True])
def test_hints_alone_are_refused(tmp_path, with_tests):
    paint(tmp_path / "a" / "0.png", 0)
    write(tmp_path / "a" / "rows.jsonl", [hinted(0, "0.png")])
    if with_tests:
        paint(tmp_path / "a" / "1.png", 1)
        (tmp_path / "a" / "test.json").write_text(json.dumps([case(1, "1.png")]))
    with pytest.raises(ValueError, match="an agent's hints alone cannot be checked"):
        import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    assert not (tmp_path / "out").exists()


def test_what_a_held_out_source_has_of_an_agent_is_not_learnt_from(tmp_path):
    for at, name in enumerate(("many", "few", "agents")):
        images = [f"{name}{number}.png" for number in range(4 if name == "many" else 1)]
        for number, image in enumerate(images):
            paint(tmp_path / name / image, 10 * at + number)
        paint(tmp_path / name / "unlabelled.png", 100 + at)
        labelled = [] if name == "agents" else [row(n, image) for n, image in enumerate(images)]
        write(tmp_path / name / "rows.jsonl", [*labelled, hinted(90 + at, "unlabelled.png")])
    folders = [tmp_path / name for name in ("many", "few", "agents")]
    shares = {"train": 0.8, "held_out": 0.2}
    imported = import_data(folders, tmp_path / "out", shares=shares, by_source=True)
    assert imported.records == {"train": 4, "held_out": 1, "hinted": 2}
    assert [row["id"] for row in rows_of(tmp_path / "out", "hinted")] == ["r90", "r92"]
    assert why_left_out(imported) == {"only an agent names it, and its image is in held_out": 1}


def test_a_test_case_that_only_an_agent_named_is_refused(tmp_path):
    paint(tmp_path / "a" / "x.png", 1)
    write(tmp_path / "a" / "rows.jsonl", [row(1, "x.png")])
    paint(tmp_path / "a" / "y.png", 2)
    hinted = case(1, "y.png", metadata={"task_type": "?", "agent_expert": "calendar"})
    (tmp_path / "a" / "test.json").write_text(json.dumps([hinted]))
    imported = import_data([tmp_path / "a"], tmp_path / "out", shares={"train": 1.0})
    assert imported.records == {"train": 1, "test": 0}
    assert any("no label rule matches" in reason for s in imported.sources for reason in s.skipped)


def test_a_split_depends_on_pixels_and_seed_only(calendar, tmp_path):
    def images(out, **how):
        import_data([calendar / "train.jsonl"], tmp_path / out, shares=HALVES, **how)
        return {r["id"] for r in rows_of(tmp_path / out, "train")}

    first = images("a", seed=1)
    lines = (calendar / "train.jsonl").read_text().splitlines()
    (calendar / "train.jsonl").write_text("\n".join(reversed(lines)))
    assert images("b", seed=1) == first
    assert any(images(f"c{seed}", seed=seed) != first for seed in range(2, 6))


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda root: [root / "none.jsonl"], "is no file"),
        (lambda root: [root / "empty"], "holds neither"),
        (lambda root: [root / "notes.txt"], "is neither a folder"),
        (lambda root: [root / "a.jsonl", root / "." / "a.jsonl"], "named twice"),
        (lambda root: [root / "a.jsonl"], r"none of 2 rows can be imported, 2 of them because the"),
        (lambda root: [root / "one.jsonl"], "calendar has 1 images for 3 splits"),
    ],
)
def test_nothing_is_written_when_nothing_can_be(tmp_path, prepare, reason):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.jsonl", [row(1, "images/gone.png"), row(2, "images/gone.png")])
    write(tmp_path / "one.jsonl", [row(1, "images/screen_1.png")])
    paint(tmp_path / "images/screen_1.png", 1)
    with pytest.raises(ValueError, match=reason):
        import_data(prepare(tmp_path), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_occupied_folder_and_a_share_called_test_are_refused(calendar, tmp_path):
    with pytest.raises(ValueError, match="choose a new one"):
        import_data([calendar], calendar)
    with pytest.raises(ValueError, match="split of its own"):
        import_data([calendar], tmp_path / "out", shares={"test": 1.0})


def test_rows_are_streamed(tmp_path):
    folder = tmp_path / "many"
    for number in range(4):
        paint(folder / f"images/screen_{number}.png", number)
    source = folder / "a.jsonl"
    with source.open("w") as lines:
        for number in range(300):
            long = row(number, f"images/screen_{number % 4}.png", notes="x" * 15_000)
            lines.write(json.dumps(long) + "\n")
    tracemalloc.start()
    made = import_data([source], tmp_path / "out", shares=HALVES)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(made.records.values()) == 300
    assert source.stat().st_size > 4_000_000
    assert used < 1_000_000
