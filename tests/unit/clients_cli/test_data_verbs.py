"""The data verbs on real screens, drawn here."""

import json


def test_draw_label_and_count(molora, tmp_path):
    out = tmp_path / "set"
    done = molora(
        *("data", "synthesize", out, "--images-per-kind", 3, "--tasks-per-image", 2),
        *("--seed", 5, "--json"),
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


def test_bad_input_is_2_with_one_line(molora, tmp_path):
    done = molora("data", "stats", tmp_path / "none.jsonl")
    assert done.exit_code == 2
    assert "none.jsonl is no file" in done.stderr
    done = molora("data", "synthesize", tmp_path, "--images-per-kind", 1)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
