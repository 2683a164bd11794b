"""The inspector in a headless Chromium, before services that say what a test tells them to."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from molora.v1 import executor_pb2, router_pb2, types_pb2
from tests.support.bridge import RunningBridge
from tests.support.chromium import Page, chromium, find_chromium
from tests.support.stub_services import Fail, Reply, StubServices, completed, decision

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="there is no chromium on this machine: apt-get install chromium"
)

SAMPLES = Path(__file__).parents[4] / "miniature/samples/images"
SCREEN = SAMPLES / "calendar_00002.png"
PROMPT = "Click December 3 in the calendar"
CLICK = {"action": "left_click", "coordinate": [498, 385]}
# A file as the page would get it from outside.
MAKE_FILE = """
  const bytes = Uint8Array.from(atob('{base64}'), (one) => one.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], 'screen.png', {{type: '{type}'}}));
"""


def answer(*calls: dict[str, Any]) -> Reply:
    """A stream that calls the computer_use tool."""
    blocks = [{"name": "computer_use", "arguments": arguments} for arguments in calls]
    text = "\n".join(f"<tool_call>\n{json.dumps(block)}\n</tool_call>" for block in blocks)
    ran = completed(gates=types_pb2.Gates(weights={"calendar": 1.0}))
    ran.applied.experts.add(name="calendar", digest="d" * 64, generation=1)
    ran.timings.decode_ms = 40.0
    return Reply(
        (
            executor_pb2.GenerateResponse(delta=executor_pb2.Delta(text=text)),
            executor_pb2.GenerateResponse(completed=ran),
        )
    )


def routed(reason: Any = types_pb2.DECISION_REASON_ROUTER, **gates: float) -> Reply:
    weights = {name.replace("_", "-"): weight for name, weight in gates.items()}
    chosen = decision(gates=types_pb2.Gates(weights=weights), reason=reason)
    timings = router_pb2.RouteTimings(features_ms=5.0, head_ms=1.0, total_ms=7.0)
    return Reply((router_pb2.RouteResponse(decision=chosen, timings=timings),))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = find_chromium()
    assert path is not None
    with chromium(path, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, bridge: RunningBridge, stub: StubServices) -> Iterator[Page]:
    """The page, fresh and connected. Whatever the browser complains about fails the test."""
    browser.complaints.clear()
    browser.look(width=1380, height=1000)
    browser.open(bridge.url)
    browser.wait("document.getElementById('choice-a').options.length > 3")
    yield browser
    assert not browser.complaints


def choose(page: Page, letter: str, words: str) -> None:
    """Choose the option that reads like this."""
    assert page.run(
        f"(() => {{ const select = document.getElementById('choice-{letter}');"
        f" const wanted = [...select.options].find((one) => one.text === {json.dumps(words)});"
        " select.value = wanted.value; return select.value !== ''; })()"
    )


def fill_in(page: Page) -> None:
    page.choose_file("#file", SCREEN)
    page.wait("!document.getElementById('preview').hidden")
    page.run("document.getElementById('prompt').focus()")
    page.type(PROMPT)


def run(page: Page) -> None:
    page.press("Enter", 13, ctrl=True)
    page.wait("document.querySelector('.result')")
    page.wait("document.getElementById('cancel').disabled")


class TestAsking:
    def test_gates_reason_answer_and_time_are_shown(self, page: Page, stub: StubServices) -> None:
        stub.script["Route"] = [routed(calendar=0.9, claim_window=0.1)]
        stub.script["Generate"] = [answer(CLICK, {"action": "type", "text": "December"})]
        fill_in(page)
        run(page)
        [call] = stub.seen("Route")
        assert call.request.screen.data == SCREEN.read_bytes()
        assert call.request.prompt.text == PROMPT
        assert page.text(".reason") == "ROUTER"
        assert "0.750" in page.text(".facts")
        assert "0.500 of 0.69 nats" in page.text(".facts")
        gates = page.text(".result .gates").split()
        assert gates == [
            *("calendar", "0.900", "head", "0.750"),
            *("claim-window", "0.100", "head", "0.250"),
        ]
        widths = page.run(
            "[...document.querySelectorAll('.result .bar')].map((b) => b.style.width)"
        )
        assert widths == ["90%", "10%"]
        assert page.text(".calls").split() == [
            *("left_click", "coordinate", "[498,385]", "type", "text", "December")
        ]
        assert "decode\n40 ms" in page.text(".phase-list")
        assert page.text("#announce") == (
            'A, router default (top1): left_click coordinate [498,385], then type text "December".'
        )

    def test_the_click_is_drawn_where_it_is(self, page: Page, stub: StubServices) -> None:
        stub.script["Generate"] = [answer(CLICK, {"action": "left_click", "coordinate": [0, 1000]})]
        fill_in(page)
        run(page)
        page.wait("document.querySelector('figure img').complete")
        drawn = page.run(
            "(() => { const box = document.querySelector('figure img').getBoundingClientRect();"
            " return [...document.querySelectorAll('.mark')].map((mark) => {"
            " const own = mark.getBoundingClientRect();"
            " return [(own.x + own.width / 2 - box.x) / box.width,"
            " (own.y + own.height / 2 - box.y) / box.height]; }); })()"
        )
        assert drawn == [pytest.approx([0.498, 0.385], abs=0.005), pytest.approx([0, 1], abs=0.005)]
        assert "left_click at pixel 112, 80 of 225\u00d7208" in page.text("figcaption")

    def test_two_choices_side_by_side(self, page: Page, stub: StubServices) -> None:
        override = types_pb2.DECISION_REASON_MANUAL_OVERRIDE
        stub.script["Route"] = [routed(calendar=1.0), routed(override, claim_window=1.0)]
        stub.script["Generate"] = [answer(CLICK), answer({"action": "scroll", "pixels": 300})]
        fill_in(page)
        choose(page, "a", "router, soft")
        choose(page, "b", "claim-window")
        run(page)
        options = [call.request.options for call in stub.seen("Route")]
        assert options[0].mode == types_pb2.ROUTING_MODE_SOFT
        assert options[1].expert_override == "claim-window"
        reasons = page.run("[...document.querySelectorAll('.reason')].map((one) => one.innerText)")
        assert reasons == ["ROUTER", "MANUAL_OVERRIDE"]
        assert page.text("#announce").startswith("Different answers. A, router, soft: left_click")
        assert page.run("document.querySelectorAll('.mark').length") == 1

    def test_the_bare_base_has_no_gates(self, page: Page, stub: StubServices) -> None:
        fill_in(page)
        choose(page, "a", "base only")
        run(page)
        assert not stub.seen("Route")
        assert page.text(".why") == "no expert ran: the bare base"
        assert page.text(".result .gates") == ""

    def test_an_answer_is_shown_as_text_and_never_as_markup(
        self, page: Page, stub: StubServices
    ) -> None:
        text = "<img src=x onerror=alert(1)><script>alert(2)</script>"
        stub.script["Generate"] = [
            Reply(
                (
                    executor_pb2.GenerateResponse(delta=executor_pb2.Delta(text=text)),
                    executor_pb2.GenerateResponse(completed=completed()),
                )
            )
        ]
        fill_in(page)
        run(page)
        assert page.text(".text") == text
        assert page.text(".no-call") == "no tool call in it"

    def test_failures_say_what_to_do(self, page: Page, stub: StubServices) -> None:
        fill_in(page)
        stub.script["Generate"] = [Fail(grpc.StatusCode.ABORTED, "EXPERT_SET_CHANGED")]
        run(page)
        assert page.text(".error") == (
            "The experts changed meanwhile; send the request again. (EXPERT_SET_CHANGED)"
        )
        assert page.text(".result .gates"), "what was decided stays"
        stub.script["Route"] = [Fail(grpc.StatusCode.INVALID_ARGUMENT, "UNREADABLE_SCREEN")]
        run(page)
        assert "(UNREADABLE_SCREEN)" in page.text(".error")
        assert page.text("#announce") == "There is no answer; the card says why."
        # The browser itself notes answers that are errors.
        assert [text for text in page.complaints if "400" not in text] == []
        page.complaints.clear()

    def test_escape_cancels(self, page: Page, stub: StubServices) -> None:
        stub.script["Generate"] = [Reply(answer(CLICK).messages, delay_s=1.0)]
        fill_in(page)
        page.press("Enter", 13, ctrl=True)
        page.wait("document.querySelector('.result .gates').children.length > 0")
        page.press("Escape", 27)
        page.wait("document.getElementById('announce').innerText === 'Cancelled.'")
        assert page.text(".error") == "Cancelled."

    def test_what_is_missing_is_said_and_gets_the_focus(
        self, page: Page, stub: StubServices
    ) -> None:
        page.press("Enter", 13, ctrl=True)
        page.wait("document.getElementById('announce').innerText.startsWith('Drop, paste')")
        page.choose_file("#file", SCREEN)
        page.wait("!document.getElementById('preview').hidden")
        page.press("Enter", 13, ctrl=True)
        page.wait("document.getElementById('announce').innerText === 'Write a prompt first.'")
        assert page.run("document.activeElement.id") == "prompt"
        assert not stub.seen("Route")


class TestScreens:
    @pytest.mark.parametrize(
        "event",
        [
            "window.dispatchEvent(new DragEvent('drop', {dataTransfer: given, cancelable: true}))",
            "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: given}))",
        ],
    )
    def test_a_screen_that_is_dropped_or_pasted(self, page: Page, event: str) -> None:
        give(page, SCREEN.read_bytes(), "image/png", event)
        page.wait("!document.getElementById('preview').hidden")
        assert page.text("#file-facts").startswith("225\u00d7208")
        assert page.text("#announce") == "Screen of 225 by 208 pixels taken."

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("text/plain", "That is no PNG or JPEG file."),
            ("image/png", "That image cannot be read."),
        ],
    )
    def test_what_is_no_screen(self, page: Page, kind: str, said: str) -> None:
        event = "window.dispatchEvent(new DragEvent('drop', {dataTransfer: given}))"
        give(page, b"nothing", kind, event)
        page.wait(f"document.getElementById('announce').innerText === {json.dumps(said)}")
        assert page.run("document.getElementById('preview').hidden")

    def test_clear_forgets_everything(self, page: Page) -> None:
        fill_in(page)
        run(page)
        page.run("document.getElementById('clear').click()")
        assert page.run("document.getElementById('prompt').value") == ""
        assert page.run("document.querySelectorAll('.result').length") == 0
        assert page.run("document.getElementById('preview-image').hasAttribute('src')") is False


class TestPage:
    def test_the_live_view_follows_and_can_be_paused(
        self, page: Page, stub: StubServices, bridge: RunningBridge, ask: dict[str, Any]
    ) -> None:
        rows = "document.querySelectorAll('#decisions tr').length"
        before = bridge.get("/inspect/decisions").json["count"]
        stub.script["Route"] = [routed(calendar=0.75, claim_window=0.25)]
        bridge.post("/inspect", ask)
        page.wait(
            f"{rows} > 0 && document.getElementById('live-count').innerText"
            f".startsWith('{before + 1} in all')"
        )
        assert "calendar 0.750, claim-window 0.250" in page.text("#decisions tr")
        assert "calendar" in page.text("#marginals")
        page.run("document.getElementById('pause').click()")
        assert page.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"

    def test_a_router_that_does_not_serve_is_said(self, page: Page, stub: StubServices) -> None:
        info = router_pb2.GetRouterInfoResponse(serving=False, not_serving_reason="EXPERT_CHANGED")
        stub.script["GetRouterInfo"] = [Reply((info,))]
        page.run("location.reload()")
        said = "document.getElementById('serving')?.innerText"
        page.wait(f"{said} === 'not serving: EXPERT_CHANGED'")

    def test_the_tab_key_reaches_everything_in_order_and_shows_where_it_is(
        self, page: Page
    ) -> None:
        reached = []
        for _ in range(9):
            page.press("Tab", 9)
            reached.append(
                page.run("document.activeElement.id || document.activeElement.className")
            )
        assert reached[:8] == [
            *("skip", "file", "prompt", "choice-a", "choice-b", "run", "clear", "pause")
        ]
        page.run("document.getElementById('prompt').focus()")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.run(outline) == "solid"

    def test_every_control_has_a_name(self, page: Page) -> None:
        nameless = page.run(
            "[...document.querySelectorAll('button, select, textarea, input')].filter((one) =>"
            " !(one.labels?.length || one.innerText || one.getAttribute('aria-label'))).length"
        )
        assert nameless == 0
        assert page.run("document.getElementById('announce').getAttribute('aria-live')") == "polite"

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_text_stands_out_in_both_themes(self, page: Page, theme: str) -> None:
        page.look(width=1380, height=1000, theme=theme)
        fill_in(page)
        run(page)
        assert page.run(LEAST_CONTRAST) >= 4.5

    def test_a_narrow_window_needs_no_sideways_scrolling(self, page: Page) -> None:
        page.look(width=400, height=800)
        fill_in(page)
        choose(page, "b", "router, top2")
        run(page)
        assert page.run("document.documentElement.scrollWidth") <= 400

    @pytest.mark.parametrize(
        "attempt",
        [
            "document.createElement('script').src = 'https://elsewhere.example/x.js'",
            "document.body.setAttribute('onclick', 'window.ran = true')",
            "document.body.innerHTML = '<b>markup</b>'",
            "await fetch('https://elsewhere.example/')",
        ],
    )
    def test_the_browser_refuses_what_no_page_of_ours_does(self, page: Page, attempt: str) -> None:
        assert page.run(
            f"(async () => {{ try {{ {attempt}; }} catch {{ return true; }} return false; }})()"
        )
        assert page.complaints, "the policy refused it, and not something else"
        page.complaints.clear()


# WCAG's contrast ratio of every text with what is painted behind it; the smallest.
LEAST_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = 21;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const shown = element.checkVisibility() && !element.closest(':disabled, .mark, .skip');
    if (!shown || !walker.currentNode.data.trim()) continue;
    const pair = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    least = Math.min(least, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05));
  }
  return least;
})()
"""


def give(page: Page, content: bytes, kind: str, event: str) -> None:
    """Hand the page a file in an event of this kind."""
    made = MAKE_FILE.format(base64=base64.b64encode(content).decode(), type=kind)
    page.run(f"(() => {{ {made} {event}; return true; }})()")
