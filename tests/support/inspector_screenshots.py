"""Takes the two pictures of the inspector for docs/, with the real services and the miniature.

Run it again after the page or the miniature has changed:

    .venv/bin/python -m tests.support.inspector_screenshots
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support.bridge import running_bridge
from tests.support.chromium import Page, chromium, find_chromium
from tests.support.processes import running

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "miniature/samples/images"
OUT = ROOT / "docs"
# What the live view shows: (screen, prompt, choice).
BEFORE = (
    ("edit-claim-window_00001.jpg", "Scroll down one page within the procedures grid.", "{}"),
    ("calendar_00002.png", "Click the Week button", '{"mode":"soft"}'),
    ("edit-claim-window_00000.jpg", "Open row 1", "{}"),
    ("calendar_00004.png", "Open row 1", "{}"),
)
SHOWN = ("calendar_00005.png", "Open row 1")
SIDE_BY_SIDE = ('{"mode":"soft"}', '{"adapter":"claim-window"}')
SIZE = {"width": 1400, "height": 1360}
ANSWERED = "document.querySelectorAll('.result .time:not([hidden])').length === {}"


def main() -> int:
    """Write `inspector-light.png` and `inspector-dark.png`; 1 where there is no Chromium."""
    browser = find_chromium()
    if browser is None:
        print("there is no chromium on this machine: apt-get install chromium", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log_file = folder / "services.log"
        executor = stack.enter_context(running("executor_service", log_file=log_file))
        flags = ("--executor", executor.address)
        router = stack.enter_context(running("router_service", *flags, log_file=log_file))
        bridge = stack.enter_context(running_bridge(router.address, executor.address))
        page = stack.enter_context(chromium(browser, folder / "profile"))
        page.look(**SIZE)
        page.open(bridge.url)
        page.wait("document.getElementById('choice-a').options.length > 3")
        for screen, prompt, choice in BEFORE:
            ask(page, screen, prompt, choice)
        ask(page, *SHOWN, *SIDE_BY_SIDE)
        page.wait(f"document.querySelectorAll('#decisions tr').length === {len(BEFORE) + 2}")
        page.run("document.activeElement.blur()")
        for theme in ("light", "dark"):
            page.look(**SIZE, theme=theme)
            save(page.screenshot(), OUT / f"inspector-{theme}.png")
    return 0


def save(png: bytes, path: Path) -> None:
    """Write a picture in 256 colours, which is a third of its size and looks the same."""
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    few.save(path, optimize=True)


def ask(page: Page, screen: str, prompt: str, *choices: str) -> None:
    """Fill in the form as a person would, run it, and wait for every answer."""
    page.choose_file("#file", IMAGES / screen)
    page.wait("!document.getElementById('preview').hidden")
    page.run("document.getElementById('prompt').select()")
    page.run("document.getElementById('prompt').focus()")
    page.type(prompt)
    for name, choice in zip(("a", "b"), (*choices, "")[:2], strict=True):
        page.run(f"document.getElementById('choice-{name}').value = '{choice}'")
    page.press("Enter", 13, ctrl=True)
    page.wait("document.getElementById('cancel').disabled")
    page.wait(ANSWERED.format(len(choices)))


if __name__ == "__main__":
    sys.exit(main())
