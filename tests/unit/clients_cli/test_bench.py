"""`molora bench` asks live services, and states how many calls of each kind it timed."""

import json

import grpc
import pytest

from tests.support.evaluation import knowing, write_dataset
from tests.support.stub_services import UNARY, Fail, Reply

KINDS = ["Route", "Generate, screen held", "Predict", "Predict, 3 callers"]


@pytest.fixture
def asked(stub, tmp_path):
    knowing(stub)
    records = write_dataset(tmp_path / "set")
    addresses = ("--router", stub.address, "--executor", stub.address)
    return ("bench", records, *addresses, "--callers", 3)


def abstained():
    return Fail(grpc.StatusCode.FAILED_PRECONDITION, "ABSTAINED")


def test_every_kind_of_call_is_timed(molora, asked, stub, tmp_path):
    file = tmp_path / "new" / "bench.json"
    done = molora(*asked, "--json", file)
    assert done.exit_code == 0, done.stderr
    stated = json.loads(file.read_text())
    assert [row["call"] for row in stated["rows"]] == KINDS
    for row in stated["rows"]:
        assert (row["calls"], row["abstained"]) == (4, 0)
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["calls_per_s"] > 0
    assert stated["experts"] == ["calendar", "claim-window"]
    assert stated["client"]["cpus"] > 0
    assert all(kind in done.stdout for kind in KINDS)
    # Predict warms up three times; a Route more each gives the screen that is held.
    counts = {method: len(stub.seen(method)) for method in ("Route", "Generate", "Predict")}
    assert counts == {"Route": 4 + 4, "Generate": 4, "Predict": 3 + 4 + 4}
    sent = [call.request.screen.data for name in ("Route", "Predict") for call in stub.seen(name)]
    assert len(set(sent)) == len(sent) == 8 + 11
    assert stub.seen("Generate")[-1].request.screen.context_id == "ctx-claim-window"


def test_a_dash_is_stdout_and_nothing_else_is_there(molora, asked):
    done = molora(*asked, "--calls", 1, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert [row["calls"] for row in json.loads(done.stdout)["rows"]] == [1] * 4


def test_an_abstention_is_an_answer_and_is_counted(molora, asked, stub):
    # Of two calls: one that is timed, and one that was to be held; both of warming up, and one.
    answered = Reply((UNARY["Route"](stub.address),))
    stub.script["Route"] = [abstained(), answered, abstained()]
    stub.script["Predict"] = [abstained() for _ in range(3)]
    done = molora(*asked, "--calls", 2, "--json", "-")
    assert done.exit_code == 0, done.stderr
    rows = {row["call"]: row for row in json.loads(done.stdout)["rows"]}
    assert [rows[kind]["abstained"] for kind in KINDS] == [1, 0, 1, 0]
    assert rows["Generate, screen held"]["calls"] == 1


def test_where_all_screens_are_strange_no_answer_is_timed(molora, asked, stub):
    stub.script["Route"] = [abstained() for _ in range(2)]
    done = molora(*asked, "--calls", 1, "--json", "-")
    assert [row["call"] for row in json.loads(done.stdout)["rows"]] == [
        kind for kind in KINDS if kind != "Generate, screen held"
    ]


def test_without_addresses_the_miniature_is_started(molora, asked, stub, monkeypatch):
    import contextlib

    from training import services

    @contextlib.contextmanager
    def started(bundle):
        assert bundle is None
        yield services.Services(stub.address, stub.address)

    monkeypatch.setattr(services, "started", started)
    done = molora(*asked[:2], "--calls", 1, "--json", "-")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--router", "127.0.0.1:1"], "go together"),
        (["none.jsonl"], "is no file"),
        (["--json", "/dev/null/b.json"], "/dev/null"),
    ],
)
def test_what_cannot_be_done(molora, flags, said):
    done = molora("bench", *flags)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_failed_call_ends_as_grpcurl_does(molora, asked, stub):
    stub.script["Route"] = [Fail(grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")]
    done = molora(*asked)
    assert done.exit_code == 64 + 7
    assert "NOT_ALLOWED" in done.stderr
