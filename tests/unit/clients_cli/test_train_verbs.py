"""The training verbs where they refuse; tests/unit/training shows what they do."""


def test_a_folder_that_is_no_cache_is_bad_input(molora, tmp_path):
    done = molora("train", "stage1", "--features", tmp_path, "--out", tmp_path / "bundle")
    assert done.exit_code == 2
    assert "holds no whole feature cache" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_records_without_a_label_are_bad_input(molora, stub, tmp_path):
    done = molora("train", "features", tmp_path / "none.jsonl", tmp_path / "cache")
    assert done.exit_code == 2
    assert "is no file" in done.stderr


def test_no_executor_is_a_failed_call(molora, tmp_path):
    out = tmp_path / "set"
    drawn = ("--images-per-kind", 3, "--tasks-per-image", 1, "--experts", "calendar")
    molora("data", "synthesize", out, *drawn)
    arguments = ("train", "features", out / "train.jsonl", tmp_path / "cache")
    done = molora(*arguments, "--executor", "127.0.0.1:1")
    assert done.exit_code == 64 + 14
    assert "molora serve" in done.stderr


RUN = ("--records", "none.jsonl", "--out", "run")


def test_a_run_without_a_model_is_bad_input(molora):
    done = molora("train", "stage2", *RUN)
    assert done.exit_code == 2
    assert "model: Field required" in done.stderr


def test_a_run_without_a_checkpoint_is_bad_input(molora, tmp_path):
    (tmp_path / "none.jsonl").touch()
    given = ("--model", tmp_path, "--records", tmp_path / "none.jsonl", "--out", tmp_path / "run")
    done = molora("train", "stage3", *given, "--lora-modules", f"a={tmp_path}")
    assert done.exit_code == 2
    assert "holds no config.json" in done.stderr


def test_an_expert_needs_a_name(molora, tmp_path):
    done = molora("train", "expert", "--model", tmp_path, *RUN)
    assert done.exit_code == 2
    assert "lora.name is not set" in done.stderr


def test_help_is_the_runs_own(molora):
    done = molora("train", "stage2", "--help")
    assert done.exit_code == 0
    assert "--gates.temperature-start" in done.output


def test_what_is_no_run_is_not_exported(molora, tmp_path):
    done = molora("export", tmp_path, tmp_path / "out", "--features", tmp_path)
    assert done.exit_code == 2
    assert "holds no head: give a router bundle" in done.stderr
