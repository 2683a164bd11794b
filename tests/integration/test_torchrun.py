"""A stage under torchrun: two processes over gloo learn what one learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import EXPERTS, TinyRun, write_tiny_run
from training.run_config import RunConfig
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


def test_two_processes_learn_what_one_learns(tiny: TinyRun, tmp_path: Path) -> None:
    # Dropout draws its numbers per process, so that two cannot have those of one.
    flags = {
        "--router.width": 16,
        "--router.dropout": 0,
        # Of the small head that the tolerance is for: it is what two orders of summing cost.
        "--router.vision-source": "tower",
        "--router.vision-pooling": "mean",
        "--rates.router": 0.01,
        "--rates.joint-expert": 0.01,
        "--weights.balance-below": 1,
        "--experts-root": tiny.experts,
    }
    given = [str(part) for pair in flags.items() for part in pair]
    printed = train("stage3", tiny, tmp_path / "2", *given)
    # One object, from the first process alone.
    assert set(json.loads(printed)["experts"]) == set(EXPERTS)
    same = ["--config", str(tmp_path / "2" / "run.yaml"), "--out", str(tmp_path / "1")]
    train_stage3(RunConfig.read(same, "molora train stage3"))
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
    assert len(alone) == len(together) > 60
    for at, moments in alone.items():
        expected, found = moments["exp_avg"], together[at]["exp_avg"]
        assert float((found - expected).abs().max()) <= 5e-3 * float(expected.abs().max())
    for name in EXPERTS:
        assert (tmp_path / "2" / "experts" / name / "adapter").is_dir()
