"""Bodies that are questions, and those that are not."""

import base64

import pytest

from clients.web.asks import decode_image, read_ask, read_inspection
from clients.web.errors import BridgeError
from molora_client import RoutingMode

IMAGE = b"\x89PNG" + bytes(range(256))
BASE64 = base64.b64encode(IMAGE).decode()
ASK = {"image_b64": BASE64, "prompt": "Click"}


@pytest.mark.parametrize(
    "value",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f"data:image/jpeg;base64,{BASE64}",
        f"DATA:image/PNG;base64,{BASE64}",
        base64.encodebytes(IMAGE).decode(),  # broken into lines
        f" {BASE64}\r\n",
    ],
)
def test_an_image_bare_or_as_a_data_url(value):
    assert decode_image(value) == IMAGE


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "IMAGE_MISSING"),
        ("", "IMAGE_MISSING"),
        (7, "IMAGE_MISSING"),
        ([BASE64], "IMAGE_MISSING"),
        ("data:image/png;base64,", "IMAGE_MISSING"),
        (f"data:image/svg+xml;base64,{BASE64}", "IMAGE_MISSING"),
        (f"data:text/html;base64,{BASE64}", "IMAGE_MISSING"),
        ("data:image/png,abc", "IMAGE_MISSING"),
        (BASE64 + "!", "IMAGE_NOT_BASE64"),
        (BASE64[:-1], "IMAGE_NOT_BASE64"),
        ("a-_b", "IMAGE_NOT_BASE64"),
        ("http://somewhere/screen.png", "IMAGE_NOT_BASE64"),
        ("\u00e9\u00e9\u00e9\u00e9", "IMAGE_NOT_BASE64"),
    ],
)
def test_what_is_no_image(value, reason):
    with pytest.raises(BridgeError) as caught:
        decode_image(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": None}, "PROMPT_MISSING"),
        ({"prompt": " \n"}, "PROMPT_MISSING"),
        ({"prompt": 3}, "PROMPT_MISSING"),
        ({"prompt": "half a \ud83d pair"}, "PROMPT_MISSING"),
        ({"expert": "calendar"}, "BAD_LABEL"),
        ({"expert": 1.0}, "BAD_LABEL"),
        ({"expert": True}, "BAD_LABEL"),
        ({"adapter": 1}, "BAD_ADAPTER"),
        ({"adapter": ""}, "BAD_ADAPTER"),
        ({"adapter": "\ud800"}, "BAD_ADAPTER"),
    ],
)
def test_fields_that_cannot_be(changes, reason):
    with pytest.raises(BridgeError) as caught:
        read_ask({**ASK, **changes})
    assert caught.value.reason == reason


def test_a_question_and_who_is_forced():
    ask = read_ask({**ASK, "expert": 0, "adapter": "calendar", "whatever": 1})
    assert (ask.prompt, ask.screen, ask.label, ask.adapter) == ("Click", IMAGE, 0, "calendar")
    ask = read_ask({**ASK, "expert": None, "adapter": None})
    assert (ask.label, ask.adapter) == (None, None)
    assert "Click" not in repr(ask)


def test_what_the_page_may_choose():
    assert read_inspection({**ASK, "mode": "top2"}).mode is RoutingMode.TOP2
    assert read_inspection({**ASK, "base_only": True}).base_only
    assert read_inspection({**ASK, "adapter": "calendar"}).adapter == "calendar"
    assert read_inspection(ASK).mode is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "top3"}, "BAD_MODE"),
        ({"mode": ["soft"]}, "BAD_MODE"),
        ({"mode": ""}, "BAD_MODE"),
        ({"base_only": 1}, "BAD_CHOICE"),
        ({"mode": "soft", "base_only": True}, "BAD_CHOICE"),
        ({"mode": "soft", "adapter": "calendar"}, "BAD_CHOICE"),
        ({"expert": 0, "base_only": True}, "BAD_CHOICE"),
    ],
)
def test_choices_that_exclude_each_other(changes, reason):
    with pytest.raises(BridgeError) as caught:
        read_inspection({**ASK, **changes})
    assert caught.value.reason == reason
