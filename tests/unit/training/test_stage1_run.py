"""Where stage 1's configuration comes from, what it refuses, and that a run repeats from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.feature_cache import write_calibrated as write_cache
from training.feature_index import INDEX_FILE
from training.stage1_config import Stage1Config, Stage1Run
from training.stage1_run import run_stage1

PROG = "molora train stage1"
FAST = ("--width", "16", "--max-epochs", "2", "--seed", "3")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def read(features: Path, out: Path, *flags: str) -> Stage1Run:
    return Stage1Run.read(["--features", str(features), "--out", str(out), *flags], PROG)


def test_flags_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("features: f\nout: o\nwidth: 8\nmixup: 0.1\nseed: 7\n")
    monkeypatch.setenv("MOLORA_TRAIN_SEED", "8")
    monkeypatch.setenv("MOLORA_TRAIN_WIDTH", "9")
    run = Stage1Run.read(["--config", str(file), "--width", "10"], PROG)
    assert (run.features, run.out, run.known) == (Path("f"), Path("o"), None)
    assert run.config == Stage1Config(width=10, mixup=0.1, seed=8)


def test_only_a_run_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of another run are found again by its numbers, whatever is set here."""
    monkeypatch.setenv("MOLORA_TRAIN_SEED", "8")
    assert Stage1Config(seed=2).seed == 2
    assert Stage1Config().seed == 0


def test_a_run_repeats_from_its_file(cache: Path, tmp_path: Path) -> None:
    first, bundle = run_stage1(read(cache, tmp_path / "a", *FAST), progress=False)
    written = yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())
    # Nothing is left to a default that another version may have changed.
    assert set(written) == set(Stage1Run.model_fields)
    flags = ["--config", str(tmp_path / "a" / "run.yaml"), "--out", str(tmp_path / "b")]
    again, other = run_stage1(Stage1Run.read(flags, PROG), progress=False)
    assert again.config == first.config
    assert bundle == tmp_path / "a"
    for name in ("router.onnx", "router.json"):
        assert (bundle / name).read_bytes() == (other / name).read_bytes()


def test_the_same_run_may_be_repeated_in_its_folder_and_no_other(
    cache: Path, tmp_path: Path
) -> None:
    run_stage1(read(cache, tmp_path, *FAST), progress=False)
    run_stage1(read(cache, tmp_path, *FAST), progress=False)
    with pytest.raises(ValueError, match="holds another run, with other mixup"):
        run_stage1(read(cache, tmp_path, *FAST, "--mixup", "0.2"), progress=False)


def test_other_features_under_the_same_name(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    write_cache(cache)
    run_stage1(read(cache, out, *FAST), progress=False)
    write_cache(cache, seed=1)
    with pytest.raises(ValueError, match="features changed since the run"):
        run_stage1(read(cache, out, *FAST), progress=False)


def test_what_is_known_is_the_cache_s_that_is_named(cache: Path, tmp_path: Path) -> None:
    looks = write_cache(tmp_path / "looks", digest="d" * 64)
    run = read(cache, tmp_path / "out", *FAST, "--known", str(looks))
    result, _ = run_stage1(run, progress=False)
    assert result.known_digest == "d" * 64


def test_a_cache_of_what_is_known_that_is_missing_may_be_named_right(
    cache: Path, tmp_path: Path
) -> None:
    wrong = read(cache, tmp_path, *FAST, "--known", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="holds no whole feature cache"):
        run_stage1(wrong, progress=False)
    run_stage1(read(cache, tmp_path, *FAST), progress=False)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "holds no whole feature cache; extract again"),
        (lambda text: text.replace('"text_dim": ', '"text_dim": 1'), "cannot be used: the feature"),
    ],
)
def test_an_index_that_is_not_what_was_written(
    cache: Path, tmp_path: Path, damage: Callable[[str], str], said: str
) -> None:
    copied = shutil.copytree(cache, tmp_path / "copied")
    index = copied / INDEX_FILE
    index.write_text(damage(index.read_text()))
    with pytest.raises(ValueError, match=f"copied {said}"):
        run_stage1(read(copied, tmp_path / "out", *FAST), progress=False)


def test_no_cache_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no whole feature cache"):
        run_stage1(read(tmp_path, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--width", "wide"), "width: Input should be a valid integer"),
        (("--mixup", "-1"), "mixup: Input should be greater"),
        (("--mixup", "inf"), "mixup: Input should be a finite"),
        (("--averaging", "1"), "averaging: Input should be less"),
        (("--validation-share", "0.6", "--held-out-share", "0.4"), "leave nothing to train on"),
    ],
)
def test_what_is_wrong_is_named(flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(Path("f"), Path("o"), *flags)


def test_a_key_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("features: f\nout: o\ndepth: 3\n")
    with pytest.raises(ValueError, match="depth: Extra inputs"):
        Stage1Run.read(["--config", str(tmp_path / "run.yaml")], PROG)
