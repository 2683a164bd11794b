"""`molora evaluate` asks live services and writes JSON and a page."""

import json

import grpc
import pytest
import typer

from clients.cli import evaluation
from router_service.bundle import load_bundle
from router_service.settings import EMBEDDED_BUNDLE
from tests.support.evaluation import knowing, write_dataset
from tests.support.feature_cache import state_shown, write_calibrated
from tests.support.router_bundle import head_model, write_bundle
from tests.support.stub_services import Fail


@pytest.fixture
def asked(stub, tmp_path):
    """The verb and its arguments, for services that know the right answers."""
    knowing(stub)
    records = write_dataset(tmp_path / "set")
    return ("evaluate", records, "--router", stub.address, "--executor", stub.address)


def test_json_and_page(molora, asked, tmp_path):
    file, folder = tmp_path / "new" / "e.json", tmp_path / "report"
    done = molora(*asked, "--json", file, "--report", folder)
    assert done.exit_code == 0, done.stderr
    stated = json.loads(file.read_text())
    assert stated["gate_accuracy"] == stated["oracle_accuracy"] == stated["top1_accuracy"] == 1
    assert stated["uniform_accuracy"] == stated["base_accuracy"] == 0
    assert stated["wrong_expert_accuracy"] == 0
    assert stated["of_oracle"] == {"top1": 1, "top2": 1, "soft": 1}
    assert stated["ece"] == pytest.approx(0.1, abs=1e-6)
    assert stated["controls"]["screens_shuffled"]["accuracy"]["value"] == 1
    assert stated["cases"] == 4
    assert stated["report"] == str(folder / "evaluation.html")
    assert stated["judgement"] is None
    assert (folder / "evaluation.html").is_file()
    assert "top1 / oracle 1.000" in done.stdout
    assert "claim-window" in done.stdout


def test_a_dash_is_stdout_and_nothing_else_is_there(molora, asked):
    done = molora(*asked, "--cases", 2, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["cases"] == 2


def test_without_addresses_the_services_are_started(molora, asked, stub, monkeypatch, tmp_path):
    import contextlib

    from training import services

    given = []

    @contextlib.contextmanager
    def started(bundle):
        given.append(bundle)
        yield services.Services(stub.address, stub.address)

    monkeypatch.setattr(services, "started", started)
    done = molora(*asked[:2], "--bundle", tmp_path, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert given == [tmp_path]


@pytest.fixture
def bundle(tmp_path):
    model = head_model(distance="distance").SerializeToString()
    return state_shown(write_bundle(tmp_path / "router", model))


def test_the_judgement_of_a_bundle_beside_it(molora, asked, stub, bundle, tmp_path):
    knowing(stub, version=load_bundle(bundle).version)
    features = write_calibrated(tmp_path / "features", images=200)
    folder = tmp_path / "report"
    done = molora(
        *asked, "--features", features, "--bundle", bundle, "--report", folder, "--json", "-"
    )
    assert done.exit_code == 0, done.stderr
    stated = json.loads(done.stdout)
    assert stated["judgement"]["cases"] == 150
    assert stated["gate_accuracy"] == 1
    assert 'href="judgement.html"' in (folder / "evaluation.html").read_text()
    assert (folder / "judgement.html").is_file()


def test_a_report_is_of_one_router(molora, asked, stub, bundle, tmp_path):
    """The bundle that is judged is the one that the router serves, or nothing is asked."""
    knowing(stub, version="abc" * 20)
    features = write_calibrated(tmp_path / "features", images=200)
    embedded = load_bundle(EMBEDDED_BUNDLE).version
    for named, judged in (((), f"the miniature is {embedded[:12]}"), (("--bundle", bundle), "is ")):
        report = tmp_path / "report"
        done = molora(*asked, "--features", features, *named, "--report", report)
        assert done.exit_code == 2
        assert f"serves the bundle {('abc' * 20)[:12]}" in done.stderr
        assert judged in done.stderr
        assert "--bundle" in done.stderr
        assert not list(report.iterdir())
    assert {call.method for call in stub.calls} == {"GetRouterInfo"}
    # Without records, a bundle that is named is judged alone; without one it is the router's.
    alone = ("evaluate", *asked[2:], "--features", features)
    assert molora(*alone, "--bundle", bundle).exit_code == 0
    assert molora(*alone).exit_code == 2


def test_what_is_fitted_is_not_served_yet(molora, asked, stub, bundle, tmp_path):
    before = load_bundle(bundle)
    knowing(stub, version=before.version)
    features = write_calibrated(tmp_path / "features", images=200)
    done = molora(*asked, "--features", features, "--bundle", bundle, "--fit-thresholds")
    assert done.exit_code == 2
    assert "serve the fitted one" in " ".join(done.stderr.replace("│", " ").split())
    assert load_bundle(bundle) == before
    assert not stub.calls


def test_what_cannot_be_written_is_said_before_anything_is_asked(molora, asked, stub, tmp_path):
    (tmp_path / "report" / "evaluation.html").mkdir(parents=True)
    for flags in (("--json", tmp_path), ("--report", tmp_path / "report")):
        done = molora(*asked, *flags)
        assert done.exit_code == 2
        assert "is a folder: name a file" in done.stderr
    done = molora("bench", *asked[1:], "--json", tmp_path)
    assert done.exit_code == 2
    assert "is a folder: name a file" in done.stderr
    assert not stub.calls


def test_what_cannot_be_written_any_more(tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended:
        evaluation.write_json(tmp_path, {})
    assert ended.value.exit_code == 2
    assert "Is a directory" in capsys.readouterr().err


def test_screens_to_judge_on_are_drawn_first(molora, stub, bundle, monkeypatch, tmp_path):
    from training import judged_screens

    drawn = []

    def draw(folder, executor, experts, **given):
        drawn.append((experts, given["images"], given["progress"]))
        assert executor.server_info().model == "m"
        write_calibrated(folder, images=200)
        write_calibrated(folder / "unknown", images=7)

    monkeypatch.setattr(judged_screens, "judged_screens", draw)
    asked = (
        *("evaluate", "--features", tmp_path / "new", "--draw", 200, "--bundle", bundle),
        *("--router", stub.address, "--executor", stub.address, "--fit-thresholds"),
        *("--max-risk", 0.2, "--max-refused", 0.1, "--json", "-"),
    )
    done = molora(*asked)
    assert done.exit_code == 0, done.stderr
    assert drawn == [(["calendar", "chart", "claim-window"], 200, False)]
    stated = json.loads(done.stdout)["judgement"]
    assert stated["fit"]["max_refused"] == 0.1
    assert stated["refusals"]["unknown"]["synthetic"]["n"] == 7
    # What is there is not drawn over.
    again = molora(*asked)
    assert again.exit_code == 2
    assert "is not empty: leave out --draw if" in again.stderr
    assert len(drawn) == 1
    done = molora("evaluate", "--features", tmp_path / "new", "--bundle", bundle)
    assert " of 200, unknown " in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--router", "127.0.0.1:1"], "go together"),
        (["--fit-thresholds"], "need --features"),
        (["--draw", "60"], "need --features"),
        (["--router", "h:1", "--executor", "h:2", "--bundle", "x"], "a bundle of its own"),
        (["none.jsonl"], "is no file"),
        (["--run", "none"], "is no run of stage 2 or 3"),
        (["--run", "none", "--features", "x"], "goes with cases that are answered"),
        (["--study", "study.json"], "of cases that are answered: --report"),
        (["--study", "/dev/null", "--report", "."], "/dev/null is no JSON of a study"),
        (["--json", "/dev/null/e.json"], "/dev/null"),
    ],
)
def test_what_cannot_be_done(molora, flags, said):
    done = molora("evaluate", *flags)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_failed_call_ends_as_grpcurl_does(molora, asked, stub):
    stub.script["GetServerInfo"] = [Fail(grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")]
    done = molora(*asked)
    assert done.exit_code == 64 + 7
    assert "NOT_ALLOWED" in done.stderr


def test_services_that_do_not_start(molora, asked, monkeypatch):
    from training import services
    from training.server_process import ServerFailed

    def started(bundle):
        raise ServerFailed("executor_service ended with exit code 3")

    monkeypatch.setattr(services, "started", started)
    done = molora(*asked[:2])
    assert done.exit_code == 1
    assert "exit code 3" in done.stderr
