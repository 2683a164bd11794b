"""Both clients through real handshakes, with a token that only TLS may carry."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from molora_client import AsyncMolora, Molora, Tls, UnavailableError
from tests.support.certificates import Authority
from tests.support.stub_services import ANSWER, SCREEN, StubServices, running_stub

NAME = "molora.example"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server and its clients are given, and a CA that has signed none of it."""
    folder, authority = tmp_path_factory.mktemp("tls"), Authority()
    server, client = authority.issue(NAME), authority.issue("agent")
    contents = {"ca": authority.pem, "stranger": Authority().pem}
    contents |= {"server.pem": server.certificate, "server.key": server.key}
    contents |= {"client.pem": client.certificate, "client.key": client.key}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def mutual(place: Path) -> Iterator[StubServices]:
    pair = [tuple((place / name).read_bytes() for name in ("server.key", "server.pem"))]
    credentials = grpc.ssl_server_credentials(pair, (place / "ca").read_bytes(), True)
    with running_stub(credentials) as stub:
        yield stub


def given(place: Path, **changes: object) -> Tls:
    files = {"ca_file": place / "ca", "certificate_file": place / "client.pem"}
    files["key_file"] = place / "client.key"
    return Tls(**{**files, "server_name": NAME, **changes})


async def test_mutual_tls_and_a_token(place, mutual):
    for_all = (mutual.address, mutual.address, "s3cret", given(place), 20)
    with Molora(*for_all) as client:
        assert client.predict("p", SCREEN).text == ANSWER
    async with AsyncMolora(*for_all) as client:
        assert (await client.predict("p", SCREEN)).text == ANSWER
    assert [call.metadata["authorization"] for call in mutual.calls] == ["Bearer s3cret"] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"ca_file": "stranger"},
        {"certificate_file": None, "key_file": None},
        {"server_name": "other.example"},
    ],
)
async def test_who_is_not_trusted_gets_no_call(place, mutual, changes):
    changes = {key: place / value if key == "ca_file" else value for key, value in changes.items()}
    for_all = (mutual.address, mutual.address, "s3cret", given(place, **changes), 1)
    with Molora(*for_all) as client, pytest.raises(UnavailableError):
        client.experts()
    async with AsyncMolora(*for_all) as client:
        with pytest.raises(UnavailableError):
            await client.experts()
    assert mutual.calls == []


def test_plaintext_to_a_server_with_tls_is_unavailable(mutual):
    with Molora(mutual.address, mutual.address, timeout_s=1) as client:
        with pytest.raises(UnavailableError) as caught:
            client.experts()
        assert "address" in caught.value.remedy


def test_a_key_is_not_shown(place):
    assert "client.key" not in repr(given(place))
