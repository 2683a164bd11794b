"""A stage under torchrun: two processes over gloo learn what one learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import EXPERTS, TinyRun, write_tiny_run
from training.run_config import RunConfig
from training.stage2 import train_stage2
from training.stage3 import train_stage3

TIMEOUT_S = 120
SHORT = {"--steps": 3, "--batch-rows": 4, "--save-every": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return write_tiny_run(tmp_path_factory.mktemp("tiny"))


def train(verb: str, tiny: TinyRun, out: Path, *flags: str) -> str:
    """`molora train` in two processes; what it printed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = {"--model": tiny.base, "--records": tiny.records, "--out": out, **SHORT}
    command = [sys.executable, *launch, "-m", "clients.cli.app", "train", verb, "--json"]
    for flag, value in given.items():
        command += [flag, str(value)]
    with subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        try:
            stdout, stderr = running.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # Its own handler ends the workers, which run in sessions of their own.
            running.terminate()
            raise
    assert running.returncode == 0, stderr[-3000:]
    return stdout


# Dropout draws its numbers per process, so that two cannot have those of one.
FLAGS = {
    "--router.width": 16,
    "--router.dropout": 0,
    # Of the small head that the tolerance is for: it is what two orders of summing cost.
    "--router.vision-source": "tower",
    "--router.vision-pooling": "mean",
    "--weights.balance-below": 1,
}


@pytest.mark.parametrize(
    ("verb", "stage", "flags", "parameters", "learnt"),
    [
        # AdamW's first steps are signs, of rounding too where a gradient is near 0: smaller ones.
        ("stage2", train_stage2, {"--rates.router": 0.001}, 5, set()),
        (
            "stage3",
            train_stage3,
            {"--rates.router": 0.01, "--rates.joint-expert": 0.01},
            60,
            set(EXPERTS),
        ),
    ],
    ids=["stage 2", "stage 3"],
)
def test_two_processes_learn_what_one_learns(
    tiny: TinyRun,
    tmp_path: Path,
    verb: str,
    stage: Callable[[RunConfig], object],
    flags: dict[str, float],
    parameters: int,
    learnt: set[str],
) -> None:
    flags = {**FLAGS, **flags, "--experts-root": tiny.experts}
    given = [str(part) for pair in flags.items() for part in pair]
    printed = train(verb, tiny, tmp_path / "2", *given)
    # One object, from the first process alone.
    assert set(json.loads(printed)["experts"]) == learnt
    same = ["--config", str(tmp_path / "2" / "run.yaml"), "--out", str(tmp_path / "1")]
    # With another number of processes it would be another run.
    with pytest.raises(ValueError, match="or run it with torchrun --nproc-per-node 2"):
        stage(RunConfig.read(same[:2], f"molora train {verb}"))
    stage(RunConfig.read(same, f"molora train {verb}"))
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in "12"
    )
    assert [line["step"] for line in two] == [1, 2, 3]
    assert one[0]["balance"] > 0
    for first, second in zip(one, two, strict=True):
        for name in ("loss", "answer", "entropy", "balance", "own_gate", "marginals"):
            assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-5)
    # Moments are sums of gradients; AdamW's steps are not compared, which magnify what is near 0.
    alone, together = (
        torch.load(tmp_path / n / "state.pt", weights_only=True)["optimiser"]["state"] for n in "12"
    )
    assert len(alone) == len(together) > parameters
    for at, moments in alone.items():
        expected, found = moments["exp_avg"], together[at]["exp_avg"]
        assert float((found - expected).abs().max()) <= 5e-3 * float(expected.abs().max())
    assert {path.parent.name for path in tmp_path.glob("2/experts/*/adapter")} == learnt
