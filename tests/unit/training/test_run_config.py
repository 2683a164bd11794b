"""Where a run's configuration comes from, what it refuses, and that it is written down whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.run_config import RunConfig

NEEDED = ["--model", "base", "--records", "data/all.jsonl", "--out", "run"]


def read(*flags: str) -> RunConfig:
    return RunConfig.read([*NEEDED, *flags], "molora train stage2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: from-file\nrecords: r\nout: o\nseed: 7\n"
        "gates: {top_k: 3, temperature_end: 0.5}\nweights: {kl: 0.25}\nstart: s\n"
    )
    return path


def test_flags_over_environment_over_file_over_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLORA_TRAIN_GATES__TEMPERATURE_END", "0.25")
    monkeypatch.setenv("MOLORA_TRAIN_GATES__TEMPERATURE_START", "9")
    monkeypatch.setenv("MOLORA_TRAIN_SEED", "8")
    flags = ["--config", str(file), "--gates.temperature-start", "2", "--steps", "5"]
    config = RunConfig.read(flags, "molora train stage2")
    assert (config.model, config.steps, config.seed) == (Path("from-file"), 5, 8)
    assert config.gates.model_dump() == {
        "estimator": "soft",
        "top_k": 3,
        "temperature_start": 2.0,
        "temperature_end": 0.25,
        "temperature_shape": "exponential",
    }
    assert config.weights.kl == 0.25


def test_a_divergence_from_no_head() -> None:
    with pytest.raises(ValueError, match="pulls towards the head that is started from; name start"):
        read("--weights.kl", "0.5")
    assert read("--weights.kl", "0.5", "--start", "/s").weights.kl == 0.5


def test_experts_by_name() -> None:
    config = read("--lora-modules", "a=/x", "--lora-modules", "b=/y", "--adapters", "b")
    assert config.lora_modules == {"a": Path("/x"), "b": Path("/y")}
    assert config.adapters == ("b",)


def test_what_is_saved_gives_the_same_run_again(tmp_path: Path) -> None:
    config = read(
        "--out", str(tmp_path / "run"), "--lora-modules", "a=/x", "--router.per-layer",
        "--gates.estimator", "gumbel", "--rates.router", "0.01", "--lora.name", "calendar",
    )  # fmt: skip
    config.save()
    saved = tmp_path / "run" / "run.yaml"
    assert RunConfig.read(["--config", str(saved)], "molora train stage2") == config
    # Nothing is left to a default that another version may have changed.
    written = yaml.safe_load(saved.read_text())
    assert set(written) == set(RunConfig.model_fields)
    assert written["rates"]["clip_norm"] == 1.0


def test_the_same_run_may_go_on_and_another_may_not(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    read(*out).save()
    (tmp_path / "metrics.jsonl").touch()
    read(*out).save()
    with pytest.raises(ValueError, match=r"other gates\.top_k, steps"):
        read(*out, "--steps", "3", "--gates.top-k", "2").save()


def test_a_run_that_never_got_to_learn_may_be_corrected(tmp_path: Path) -> None:
    wrong, right = read("--out", str(tmp_path), "--steps", "3"), read("--out", str(tmp_path))
    wrong.save()
    wrong.pin({"records": ""})
    right.save()
    right.pin({"records": "a"})
    (tmp_path / "state").mkdir()
    right.save()
    with pytest.raises(ValueError, match="holds another run, with other steps"):
        wrong.save()
    with pytest.raises(ValueError, match="records changed since"):
        right.pin({"records": "b"})


def test_a_run_goes_on_in_as_many_processes(tmp_path: Path) -> None:
    run, inputs = read("--out", str(tmp_path)), {"records": "a", "processes": "2"}
    run.pin(inputs)
    (tmp_path / "state").mkdir()
    run.pin(inputs)
    again = "another folder, or run it with torchrun --nproc-per-node 2"
    with pytest.raises(ValueError, match=f"processes changed since the run .* {again}"):
        run.pin({**inputs, "processes": "1"})
    with pytest.raises(ValueError, match=r"processes, records changed .* or what it began with"):
        run.pin({"records": "b", "processes": "1"})


def test_a_run_of_a_version_that_wrote_down_less(tmp_path: Path) -> None:
    run = read("--out", str(tmp_path))
    run.pin({"records": "a"})
    run.pin({"records": "a", "processes": "1"})
    run.pin({"records": "a"})
    (tmp_path / "state").mkdir()
    with pytest.raises(ValueError, match="did not write down its processes; give another folder"):
        run.pin({"records": "a", "processes": "1"})
    assert run.pinned() == {"records": "a"}


@pytest.mark.parametrize("content", ["a: [", "- a\n"])
def test_a_damaged_file_of_the_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"run\.yaml is no (YAML|mapping).* or give another"):
        read("--out", str(tmp_path)).save()


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_the_run_began_with_is_lost(tmp_path: Path, content: str | None) -> None:
    run = read("--out", str(tmp_path))
    if content is not None:
        (tmp_path / "inputs.json").write_text(content)
        with pytest.raises(ValueError, match=r"inputs\.json .* put it back"):
            run.pin({"records": "a"})
    with pytest.raises(ValueError, match=r"inputs\.json .* put it back"):
        run.pinned()
    (tmp_path / "inputs.json").write_text(json.dumps({"records": "a"}))
    assert run.pinned() == {"records": "a"}


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    read("--out", str(tmp_path)).save()
    tmp_path.rename(tmp_path.with_name("moved"))
    read("--out", str(tmp_path.with_name("moved"))).save()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--gates.top-k", "0"], "gates.top_k: Input should be greater"),
        (["--mixed-precision", "int4"], "mixed_precision: "),
        (["--batch-rows", "6", "--rows-per-forward", "4"], "no multiple of rows_per_forward 4"),
        (["--lora.rank", "5"], "lora.rank: Input should be a multiple of 2"),
        (["--known", "cache"], "without features none is written"),
    ],
)
def test_a_wrong_value_is_named(flags: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        read(*flags)


def test_everything_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"out: Field required\nrecords: Field required"):
        RunConfig.read(["--model", "base"], "molora train stage2")


def test_a_key_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: m\nrecords: r\nout: o\ntau: 3\n")
    with pytest.raises(ValueError, match="tau: Extra inputs"):
        RunConfig.read(["--config", str(tmp_path / "c.yaml")], "x")


@pytest.mark.parametrize("content", ["- a\n- b\n", "1: a\n", "a: [", "\xff".encode("latin-1")])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"c\.yaml is no (mapping|YAML)"):
        RunConfig.read(["--config", str(path)], "x")


def test_a_flag_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read("--temprature", "3")
    assert stopped.value.code == 2
    assert "--temprature" in capsys.readouterr().err


def test_help_tells_of_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--config", "--lora-modules", "--gates.temperature-end", "--router.text-layer"):
        assert flag in shown


@pytest.mark.parametrize(("processes", "forwards"), [(1, 6), (2, 3), (3, 2)])
def test_a_step_has_the_same_records_however_many_processes(processes: int, forwards: int) -> None:
    config = read("--batch-rows", "12", "--rows-per-forward", "2")
    assert config.accumulation(processes) == forwards


def test_records_that_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match="no multiple of 5 processes"):
        read("--batch-rows", "12").accumulation(5)


def test_images_lie_beside_the_records() -> None:
    assert read().images == Path("data")
    assert read("--images-root", "pictures").images == Path("pictures")


def test_a_head_that_is_started_from_learns_more_slowly(tmp_path: Path) -> None:
    given = {"model": tmp_path, "records": tmp_path, "out": tmp_path}
    assert RunConfig(**given).router_rate == 3e-4
    assert RunConfig(**given, start=tmp_path).router_rate == 3e-5
    assert RunConfig(**given, start=tmp_path, rates={"router": 1e-3}).router_rate == 1e-3
