"""The data verbs on real screens, drawn here."""

import json

TWO = ("--experts", "calendar,claim-window")


def test_draw_label_and_count(molora, tmp_path):
    out = tmp_path / "set"
    done = molora(
        *("data", "synthesize", out, "--images-per-kind", 3, "--tasks-per-image", 2),
        *("--seed", 5, "--json", *TWO),
    )
    assert done.exit_code == 0, done.output
    splits = json.loads(done.stdout)["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {
        "train": 2,
        "valid": 2,
        "held_out": 2,
    }

    train = out / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    foreign = tmp_path / "foreign.jsonl"
    for row in rows:
        del row["adapter"]
    rows.append({"id": "x", "image": "images/what.png", "conversations": [], "metadata": {}})
    foreign.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = molora("data", "label", foreign, tmp_path / "labelled.jsonl", "--json")
    labelling = json.loads(done.stdout)
    assert sum(labelling["labelled"].values()) == len(rows) - 1
    assert labelling["unmatched"] == [len(rows)]
    done = molora("data", "label", foreign, tmp_path / "labelled.jsonl")
    assert f"no rule matches 1 records: lines {len(rows)}" in done.stdout

    done = molora("data", "stats", train, out / "held_out.jsonl", "--json")
    counts = json.loads(done.stdout)
    assert counts["shared_images"] == 0
    assert counts["files"][0]["records"] == len(rows) - 1
    done = molora("data", "stats", train)
    assert "calendar" in done.stdout
    assert "images shared by two files: 0" in done.stdout


def test_chosen_experts_are_drawn_in_other_sizes(molora, tmp_path):
    done = molora(
        *("data", "synthesize", tmp_path / "set", "--images-per-kind", 3, "--tasks-per-image", 2),
        *("--experts", "login-window,chart-screen", "--other-sizes", 1),
    )
    assert done.exit_code == 0, done.output
    done = molora("data", "stats", tmp_path / "set" / "train.jsonl", "--json")
    (counts,) = json.loads(done.stdout)["files"]
    assert set(counts["adapters"]) == {"login-window", "chart-screen"}
    assert counts["told_by_size"] <= 1
    done = molora("data", "stats", tmp_path / "set" / "train.jsonl")
    assert "adapters given away by the prompt alone" in done.stdout
    done = molora("data", "synthesize", tmp_path / "x", "--experts", "calender")
    assert done.exit_code == 2
    assert "experts is calender: give different ones of calendar, claim-window" in done.stderr


def test_a_balanced_set_is_drawn_of_another(molora, tmp_path):
    drawn = tmp_path / "set"
    molora("data", "synthesize", drawn, "--images-per-kind", 3, "--tasks-per-image", 2, *TWO)
    source = drawn / "train.jsonl"
    done = molora(
        *("data", "sample", source, tmp_path / "out", "--records", 6, "--augment", "--json")
    )
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)["counts"]
    assert {adapter: sum(tasks.values()) for adapter, tasks in counts.items()} == {
        "calendar": 3,
        "claim-window": 3,
    }
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6
    done = molora("data", "sample", source, tmp_path / "more", "--records", 2)
    assert "claim-window" in done.stdout
    done = molora("data", "sample", source, tmp_path / "out", "--records", 2)
    assert done.exit_code == 2
    assert "is not an empty folder" in done.stderr.replace("\n", " ")


def test_import_splits_and_counts_what_it_leaves_out(molora, tmp_path):
    source, out = tmp_path / "set", tmp_path / "out"
    drawn = ("--images-per-kind", 3, "--tasks-per-image", 2, *TWO)
    molora("data", "synthesize", source, *drawn)
    with (source / "train.jsonl").open("a") as lines:
        lines.write("{\n" * 12)
    done = molora("data", "import", source, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["images"] == {"train": 2, "valid": 2, "held_out": 2}
    assert sum(made["records"].values()) == 12
    done = molora("data", "import", source, "--out", tmp_path / "again")
    assert "left out 12 records: lines 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 2 more" in done.stdout
    assert "the line is not JSON" in done.stdout
    done = molora("data", "import", source, "--out", out)
    assert done.exit_code == 2
    assert "choose a new one" in done.stderr


def test_bad_input_is_2_with_one_line(molora, tmp_path):
    done = molora("data", "stats", tmp_path / "none.jsonl")
    assert done.exit_code == 2
    assert "none.jsonl is no file" in done.stderr
    done = molora("data", "synthesize", tmp_path, "--images-per-kind", 1)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
