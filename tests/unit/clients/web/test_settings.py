"""Settings of the bridge: what is refused says why."""

from pathlib import Path

import pytest

from clients.web.settings import LARGEST_BODY_BYTES, SettingsError, WebSettings

CERTS = Path(__file__).parents[2] / "service_chassis/tls"


def settings(**given):
    return WebSettings(router="127.0.0.1:1", executor="127.0.0.1:2", **given)


def test_the_defaults_stay_on_this_machine():
    assert settings().is_local
    assert settings().port == 8080
    assert settings().allowed_origins == ()
    assert settings(host="::1").is_local
    assert settings(host="localhost").is_local


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 is beyond loopback without TLS"),
        ({"host": "molora.example"}, "beyond loopback"),
        ({"tls_cert": Path("cert.pem")}, "belong together"),
        ({"tls_key": Path("key.pem")}, "belong together"),
        ({"tls_client_ca": Path("ca.pem")}, "--tls-client-ca needs TLS"),
        ({"tls_cert": Path("none.pem"), "tls_key": Path("none.pem")}, "none.pem cannot be used"),
        ({"max_body_bytes": 0}, "--max-body-bytes 0"),
        ({"max_body_bytes": LARGEST_BODY_BYTES + 1}, "--max-body-bytes"),
    ],
)
def test_what_cannot_be(given, said):
    with pytest.raises(SettingsError, match=said):
        settings(**given)


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "null", "", "molora.example", "https://", "ftp://molora.example"),
        *("https://molora.example/", "https://molora.example/page", "https://Molora.example"),
        *("https://user@molora.example", "https://molora.example:99999", "https://[::1"),
    ],
)
def test_what_is_no_origin(origin):
    with pytest.raises(SettingsError, match="is no origin"):
        settings(allowed_origins=(origin,))


@pytest.mark.parametrize("origin", ["https://molora.example", "http://127.0.0.1:3000"])
def test_an_origin(origin):
    assert settings(allowed_origins=(origin,)).allowed_origins == (origin,)


def test_beyond_loopback_with_tls_and_whose_token_it_is():
    tls = {"host": "0.0.0.0", "tls_cert": CERTS / "server.pem", "tls_key": CERTS / "server.key"}
    assert not settings(**tls).is_local
    with pytest.raises(SettingsError, match="would lend the token to everyone"):
        settings(**tls, token="secret-token")
    lent = settings(**tls, token="secret-token", tls_client_ca=CERTS / "ca.pem")
    assert "secret-token" not in repr(lent)
