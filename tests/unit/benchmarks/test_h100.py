"""The GPU benchmark as a whole, on a CPU and a tiny shape; its figures say nothing here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "h100.py"


@pytest.fixture(scope="module")
def h100():
    spec = importlib.util.spec_from_file_location("h100", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["h100"] = module  # Dataclasses look their annotations up there.
    spec.loader.exec_module(module)
    yield module
    del sys.modules["h100"]


@pytest.fixture(scope="module")
def bench(h100):
    with torch.no_grad(), pytest.warns(FutureWarning):
        return h100.Bench(h100.SMALL, torch.device("cpu"))


def test_every_figure_is_measured(h100, tmp_path, capsys):
    path = tmp_path / "new" / "h100.json"
    assert h100.main(["--device", "cpu", "--small", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    # Ours and PEFT's do the same work, or comparing their times means nothing.
    assert 0 < report["figures"]["difference_from_peft"] < 1e-4
    measured = {(row["work"], row["side"], row["mode"], row["size"]) for row in report["rows"]}
    gated = ("bare base", "gated zero", "top-1", "soft-7")
    steps = [*((side, mode) for side in gated for mode in ("eager", "static"))]
    steps += [("PEFT 1", "eager"), ("PEFT 7", "eager")]
    decode = {("decode", *step, batch) for step in steps for batch in (1, 3)}
    sides = (*gated, "PEFT 1", "PEFT 7")
    prefill = {("prefill", side, "eager", tokens) for side in sides for tokens in (16, 48)}
    first = {("first token", name, "eager", 24) for name in ("cold", "vision reused")}
    first |= {("first token", name, "eager", 12) for name in ("prefix hit", "both")}
    assert measured == decode | prefill | first
    for row in report["rows"]:
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["ms"])
        assert row["floor_ms"] > 0
    assert set(report["targets"]) == set(h100.TARGETS) < set(report["figures"])
    assert all(report["memory_bytes"].values())
    printed = capsys.readouterr().out
    assert all(key in printed for key in (*report["figures"], "at least 0.8", "at most 1.06"))


def test_adapters_are_of_the_users_kind(h100, bench):
    scale = h100.SMALL
    modules = scale.text["num_hidden_layers"] * 7 + scale.vision["depth"] + 1
    assert [expert.matched_modules for expert in bench.experts.experts] == [modules] * 7
    assert {expert.matched_modules for expert in bench.blind.experts} == {modules - 4}
    for name, pair in bench.experts.experts[0].weights.items():
        assert pair.rank == (scale.rank // 2 if "visual" in name else scale.rank)
    # The full shape makes 252 + 28 of them.
    assert (h100.FULL.text["num_hidden_layers"] * 7, h100.FULL.vision["depth"] + 1) == (252, 28)


def test_floors(h100, bench, monkeypatch):
    """By hand: 3 layers of hidden 64, 4 heads of 16, 2 of them for keys, inner 96, 512 words."""
    linears = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3
    layers, head = 3 * (linears + 2 * 64 + 2 * 16), 512 * 64
    ranks = 7 * 4 * 3 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 96) * 3)
    monkeypatch.setattr(bench, "bandwidth", 1e9)
    monkeypatch.setattr(bench, "rate", 1e9)
    bare, soft, top_1 = (bench.sides[name] for name in ("bare base", "soft-7", "top-1"))
    assert bench._decode_floor_ms(bare) == pytest.approx((layers + head) * 4 / 1e6)
    assert bench._decode_floor_ms(soft) == pytest.approx((layers + head + ranks) * 4 / 1e6)
    assert top_1.extra * 7 == soft.extra == ranks
    whole, rest = bench._prefill_floor_ms(bare, 0, 10), bench._prefill_floor_ms(bare, 4, 10)
    assert whole == pytest.approx(2 * (layers * 10 + head + 64 * 3 * 100) / 1e6)
    assert rest == pytest.approx(2 * (layers * 6 + head + 64 * 3 * 84) / 1e6)


def test_ratios_are_the_worst_of_all_sizes(h100):
    def rows(work, side, mode, *times):
        return [h100.Row(work, side, mode, 1 + at, ms, 8.0) for at, ms in enumerate(times)]

    figures = h100.ratios(
        [
            *rows("decode", "bare base", "cuda_graph", 10.0, 10.0),
            *rows("decode", "bare base", "eager", 1.0, 1.0),
            *rows("decode", "soft-7", "eager", 99.0, 99.0),
            *rows("decode", "soft-7", "cuda_graph", 10.0, 11.0),
            *rows("decode", "PEFT 7", "eager", 80.0, 66.0),
            *rows("prefill", "bare base", "eager", 10.0, 10.0),
            *rows("prefill", "soft-7", "eager", 12.0, 11.0),
        ],
        "cuda_graph",
    )
    assert figures == pytest.approx(
        {
            "soft7_share_of_floor_decode_1": 0.8,
            "soft7_over_bare_decode": 1.1,
            "soft7_over_bare_prefill": 1.2,
            "peft7_over_soft7_decode": 6.0,
        }
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_what_to_try(h100, capsys):
    with pytest.raises(SystemExit):
        h100.main([])
    assert "--device cpu --small" in capsys.readouterr().err
