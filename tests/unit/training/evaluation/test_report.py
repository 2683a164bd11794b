"""One page with everything in it, and JSON without anything of a screen."""

import json
import re
from html.parser import HTMLParser

import pytest

from tests.support.evaluation import EXPERTS, case_of, result_of, write_dataset
from tests.support.study import stated as study_rates
from training.evaluation.evaluation import evaluated
from training.evaluation.pictures import Bar, bars, grouped, histogram
from training.evaluation.report import write_report
from training.evaluation.run import Run
from training.evaluation.runs import TrainingRun
from training.study.bars import mean_rates
from training.study.report import read_ablations

SURE = {"calendar": 0.9, "claim-window": 0.1}
MISTAKEN = {"calendar": 0.2, "claim-window": 0.8}
KEYS = (
    "gate_accuracy", "oracle_accuracy", "top1_accuracy", "top2_accuracy", "soft_accuracy",
    "uniform_accuracy", "random_accuracy", "base_accuracy", "wrong_expert_accuracy", "ece",
)  # fmt: skip


def run_of(folder, *, abstains=False):
    write_dataset(folder)
    screens = {name: folder / "images" / name / "0.png" for name in EXPERTS}
    sly = "<script>alert('a prompt')</script>"
    results = [
        result_of(case_of("calendar", screen=screens["calendar"], prompt=sly), SURE),
        result_of(case_of("calendar", name="2", screen=screens["calendar"]), MISTAKEN),
        result_of(case_of("claim-window", screen=screens["claim-window"]), MISTAKEN),
    ]
    if abstains:
        silent = case_of("claim-window", name="2", screen=screens["claim-window"])
        results += [result_of(silent, None)]
    return Run(EXPERTS, tuple(results), {"model": "the model"}, 12.0)


@pytest.fixture
def training_run():
    return TrainingRun(
        "no-kl", 0, "soft", "global", 0.01, 0.0, 0.1, 4, 0.5, 0.9, 0.4, None, ((1, 0.9), (4, 0.2))
    )


class Page(HTMLParser):
    """Tags, their addresses, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.open, self.ids = [], [], [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        self.ids.add(given.get("id"))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_json_holds_rates_overall_and_by_expert(tmp_path):
    stated = json.loads(json.dumps(evaluated(run_of(tmp_path)).to_json()))
    for part in (stated, *stated["experts"].values()):
        assert set(KEYS) <= set(part)
        assert all(0 <= part[name] <= 1 for name in KEYS)
    assert list(stated["experts"]) == list(EXPERTS)
    assert stated["gate_accuracy"] == pytest.approx(2 / 3)
    assert stated["counts"]["gate_accuracy"] == [2, 3]
    assert stated["wilson_95"]["gate_accuracy"] == pytest.approx([0.2077, 0.9385], abs=1e-4)
    assert stated["experts"]["calendar"]["top1_accuracy"] == 0.5
    assert stated["router"]["macro_f1"] == pytest.approx(2 / 3)
    assert stated["router"]["confusion"]["calendar"]["claim-window"] == 1
    assert [each["cases"] for each in stated["router"]["reliability"]] == [2, 1]
    assert stated["controls"]["screens_shuffled"]["accuracy"]["n"] == 2
    assert stated["controls"]["size_alone"]["accuracy"]["n"] == 3
    (source,) = stated["router_by_source"].values()
    assert source["confusion"] == stated["router"]["confusion"]
    assert source["controls"] == stated["controls"]
    assert stated["experts_on_cases_of"]["calendar"]["calendar"]["value"] == 1
    assert [each["expert"] for each in stated["masking"]] == list(EXPERTS)
    assert stated["groups"]["screen size"]["80x60"]["cases"] == 3
    assert stated["results"][0]["passed"] == ["oracle", "soft", "top1", "top2"]


def test_nothing_of_prompts_answers_and_paths_is_in_the_json(tmp_path):
    stated = json.dumps(evaluated(run_of(tmp_path, abstains=True)).to_json())
    for secret in ("prompt of", "alert", "answer's text", "tool_call", str(tmp_path)):
        assert secret not in stated


def test_the_page_needs_no_other_file(tmp_path, training_run):
    write_report(tmp_path / "e.html", evaluated(run_of(tmp_path, abstains=True), [training_run]))
    text = (tmp_path / "e.html").read_text()
    page = Page(text)
    assert not page.open
    assert "script" not in page.tags
    outside = [a for a in page.addresses if not a.startswith(("#", "data:image/"))]
    assert outside == []
    links = {address[1:] for address in page.addresses if address.startswith("#")}
    assert links <= page.ids
    assert {"runs", "removal", "examples"} <= links
    assert "&lt;script&gt;alert" in text
    assert page.tags.count("article") == 4, "one that failed and one that passed, of each"
    assert "(the router abstained)" in text
    assert "prefers-color-scheme: dark" in text
    assert "no-kl" in text
    assert not re.search(r"url\(|@import", text)


def test_a_studys_ablations_are_in_the_page(tmp_path):
    study = {
        "ablations": [
            {"name": "with <KL>", "collapsed": ["seed 1: why"], "run": None, "rates": {}},
            {
                "name": "plain",
                "collapsed": [],
                "run": {
                    "gates": "soft",
                    "granularity": "global",
                    **dict.fromkeys(("loss", "own_gate", "least_marginal"), 0.125),
                    **dict.fromkeys(("entropy_weight", "kl_weight", "balance_weight"), 0.25),
                },
                "rates": mean_rates([study_rates(top1=77)] * 2),
            },
        ]
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    ablations = read_ablations(tmp_path / "study.json")
    write_report(tmp_path / "e.html", evaluated(run_of(tmp_path)), None, ablations)
    text = (tmp_path / "e.html").read_text()
    page = Page(text)
    assert not page.open
    assert "ablations" in page.ids
    assert "with &lt;KL&gt;; seed 1: why" in text
    assert "0.770" in text
    (tmp_path / "study.json").write_text('{"ablations": []}')
    with pytest.raises(ValueError, match="has no ablations: run the study"):
        read_ablations(tmp_path / "study.json")


def test_a_page_without_anything_that_can_be_counted(tmp_path):
    write_dataset(tmp_path, ("calendar",), cases=1)
    screen = tmp_path / "images/calendar/0.png"
    silent = result_of(case_of("calendar", screen=screen, tolerance=(900, 900)), None)
    found = evaluated(Run(EXPERTS, (silent,), {}, 0.1))
    write_report(tmp_path / "e.html", found)
    assert "no case" in (tmp_path / "e.html").read_text()
    stated = found.to_json()
    assert stated["oracle_accuracy"] is stated["ece"] is None
    assert stated["gate_accuracy"] == 0


def test_bars_are_as_long_as_their_values():
    drawn = bars([Bar("half", 0.5, (0.25, 0.75)), Bar("<none>", None)], "Two & more")
    assert 'x="112.0" y="6.0" width="115.0"' in drawn, "half of the 230 between names and numbers"
    assert "0.500 [0.25, 0.75]" in drawn
    assert "&lt;none&gt;" in drawn
    assert "no case" in drawn
    assert 'aria-label="Two &amp; more"' in drawn


def test_a_histogram_counts_everything_once():
    drawn = histogram([0.0, 0.04, 0.96, 1.0, 7.0], 1.0, "gate")
    counts = re.findall(r'text-anchor="middle">(\d)</text>', drawn)
    assert counts[:2] == ["2", "3"]
    assert "rect" in histogram([], 1.0, "nothing")


def test_groups_have_a_legend():
    drawn = grouped([("calendar", [Bar("cases", 0.25, kind="wanted"), Bar("gate", 1.0)])], "t")
    assert drawn.count("<rect") == 4
    assert 'width="57.5"' in drawn, "a quarter of 230"
    small = grouped([("calendar", [Bar("cases", 0.17)])], "t")
    assert 'width="195.5"' in small, "of a scale that ends at 0.2"
    assert "0.250" in drawn
    assert ">gate</text>" in drawn
