"""`molora serve web` before both real services and the embedded miniature, as a browser sees it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.chromium import chromium, find_chromium
from tests.support.processes import STOP_S, environment, running

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "miniature/samples"
SCREEN = SAMPLES / "images/calendar_00000.png"
CANARY = "Quillabeth-Vantongeren"
SHOWN = 2


@dataclass(frozen=True)
class Served:
    """Where the bridge listens, and where all three processes write."""

    url: str
    folder: Path

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return json.load(reply)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("web")
    with (
        running("executor_service", log_file=folder / "executor.log") as executor,
        running(
            *("router_service", "--executor", executor.address), log_file=folder / "router.log"
        ) as router,
        (folder / "web.log").open("w") as log,
    ):
        command = [sys.executable, "-m", "clients.cli.app", "serve", "web", "--port", "0"]
        bridge = subprocess.Popen(
            [*command, "--router", router.address, "--executor", executor.address],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(None),
        )
        with bridge:
            assert bridge.stdout is not None
            yield Served(bridge.stdout.readline().split()[-1], folder)
            bridge.terminate()
            assert bridge.wait(STOP_S) == 0
    for name in ("executor.log", "router.log", "web.log"):
        assert CANARY not in (folder / name).read_text()


def held_out() -> list[tuple[str, str, str]]:
    """Of each expert a few that nothing was trained on: image in base64, prompt, expert."""
    lines = (SAMPLES / "held_out.jsonl").read_text().splitlines()
    by_expert: dict[str, list[tuple[str, str, str]]] = {}
    for record in map(json.loads, lines):
        image = base64.b64encode((SAMPLES / record["image"]).read_bytes()).decode()
        prompt = record["conversations"][0]["value"].removeprefix("<image>\n")
        by_expert.setdefault(record["adapter"], []).append((image, prompt, record["adapter"]))
    return [case for cases in by_expert.values() for case in cases[:SHOWN]]


def test_held_out_screens_reach_their_experts(served: Served) -> None:
    cases = held_out()
    assert len({expert for _, _, expert in cases}) > 1
    for image, prompt, expert in cases:
        answer = served.post("/infer_web", {"image_b64": image, "prompt": prompt})
        assert answer["routed_adapter"] == expert
        assert answer["task_output"]
        assert re.fullmatch("[0-9a-f]{64}", answer["model"])


def test_every_label_forces_its_expert(served: Served) -> None:
    image, _, _ = held_out()[0]
    experts = served.get("/health")["experts"]
    assert len(experts) > 1
    for expert in experts:
        body = {"image_b64": image, "prompt": f"Click {CANARY}", "expert": expert["label"]}
        answer = served.post("/", body)
        assert (answer["adapter"], answer["expert"]) == (expert["name"], expert["label"])
        assert answer["routed"] is False
        assert answer["error"] is None
        assert answer["timings"]["total"] > answer["timings"]["decode"] > 0


def test_what_the_guide_says_is_what_happens(served: Served) -> None:
    document = (ROOT / "docs/OPERATIONS.md").read_text()
    [block] = re.findall(r"^```sh\n((?:(?!```).)*?curl -sS.*?)^```$", document, re.M | re.S)
    (served.folder / "screen.png").write_bytes(SCREEN.read_bytes())
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace("localhost:8080", served.url)],
        cwd=served.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, decoder, rest = [], json.JSONDecoder(), done.stdout
    while rest:
        message, end = decoder.raw_decode(rest)
        found.append(message)
        rest = rest[end:]
    infer_web, plain, health, decisions = found
    assert infer_web["routed_adapter"] == plain["adapter"] == "calendar"
    assert plain["routed"] is False
    assert health["status"] == "serving"
    assert decisions["decisions"][0]["reason"] == "MANUAL_OVERRIDE"
    assert set(decisions["marginals"]) <= {expert["name"] for expert in health["experts"]}


@pytest.mark.skipif(
    find_chromium() is None, reason="there is no chromium on this machine: apt-get install chromium"
)
def test_the_page_shows_what_the_services_answer(served: Served, tmp_path: Path) -> None:
    path = find_chromium()
    assert path is not None
    with chromium(path, tmp_path) as page:
        page.open(served.url)
        page.wait("document.getElementById('choice-a').options.length > 3")
        page.run("""document.getElementById('choice-a').value = '{"mode":"top1"}'""")
        page.choose_file("#file", SCREEN)
        page.wait("!document.getElementById('preview').hidden")
        page.run("document.getElementById('prompt').focus()")
        page.type("Click the Today button")
        page.press("Enter", 13, ctrl=True)
        page.wait("document.querySelector('.result .time:not([hidden])')")
        assert page.text(".reason") == "ROUTER"
        gates = page.text(".result .gate:not(.off) .name").split()
        assert gates == ["calendar"]
        page.run("document.querySelector('.applied').open = true")
        assert page.text(".applied dd").startswith("calendar 1.000")
        assert not page.complaints
