import contextlib
import http.client
import socket
import ssl
import time

import pytest

from service_chassis import exposition
from service_chassis.auth import watch_tokens
from service_chassis.exposition import Exposition
from service_chassis.metrics import ServerMetrics
from service_chassis.tls import watch_tls
from tests.support.certificates import Authority, write_server


@contextlib.contextmanager
def shown(tls=None, tokens=None):
    metrics = ServerMetrics()
    metrics.call_ended("s", "m", "OK", 0.1)
    running = Exposition(metrics.registry, "127.0.0.1", 0, tls, tokens)
    try:
        yield running.address
    finally:
        running.close()


def get(address, path="/metrics", headers=(), context=None, method="GET"):
    host, _, port = address.rpartition(":")
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    connection = kind(host, int(port), timeout=10, **({"context": context} if context else {}))
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        for key, value in headers:
            connection.putheader(key, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.headers)


def test_metrics_and_nothing_else():
    with shown() as address:
        status, text, headers = get(address, "/metrics?name[]=x")
        assert status == 200
        assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="m",grpc_service="s"}' in text
        assert headers["Content-Type"].startswith("text/plain")
        assert headers["Server"].strip() == "molora"
        open_metrics = [("Accept", "application/openmetrics-text; version=1.0.0")]
        assert get(address, headers=open_metrics)[1].endswith("# EOF\n")
        assert get(address, "/")[0] == 404
        assert get(address, method="POST")[0] == 501


def bearer(token):
    return [("Authorization", f"Bearer {token}")]


def test_tokens_need_the_role(tokens_file):
    with shown(tokens=watch_tokens(tokens_file)) as address:
        assert get(address, headers=bearer("m-token"))[0] == 200
        assert get(address, headers=bearer("admin-token"))[0] == 200
        assert get(address, headers=bearer("infer-token"))[0] == 403
        for wrong in ([], bearer("wrong"), bearer("m-token") * 2):
            status, text, headers = get(address, headers=wrong)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "process_" not in text
        tokens_file.write_text("metrics other-token\n")
        assert get(address, headers=bearer("m-token"))[0] == 401
        assert get(address, headers=bearer("other-token"))[0] == 200


def test_tls_is_the_server_s_and_follows_its_files(tmp_path):
    authority, new = Authority(), Authority()
    tls = watch_tls(write_server(tmp_path, authority.issue()))
    with shown(tls=tls) as address:
        trust = ssl.create_default_context(cadata=authority.pem.decode())
        assert get(address, context=trust)[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            get(address)
        write_server(tmp_path, new.issue())
        with pytest.raises(ssl.SSLCertVerificationError):
            get(address, context=trust)
        assert get(address, context=ssl.create_default_context(cadata=new.pem.decode()))[0] == 200


def test_mutual_tls_wants_a_client_certificate(tmp_path):
    authority = Authority()
    tls = watch_tls(write_server(tmp_path, authority.issue(), authority.pem))
    pair = authority.issue("prometheus")
    (tmp_path / "client").write_bytes(pair.certificate + pair.key)
    trust = ssl.create_default_context(cadata=authority.pem.decode())
    with shown(tls=tls) as address:
        with pytest.raises(OSError, match=r"certificate required|reset|EOF|alert"):
            get(address, context=trust)
        trust.load_cert_chain(tmp_path / "client")
        assert get(address, context=trust)[0] == 200


def test_idle_peers_do_not_stop_it(monkeypatch):
    monkeypatch.setattr(exposition, "_PATIENCE_S", 0.5)
    with shown() as address, contextlib.ExitStack() as idle:
        port = int(address.rpartition(":")[2])
        for _ in range(exposition._MAX_CONNECTIONS + 4):
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if get(address)[0] == 200:
                    return
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_port_in_use_is_named():
    with shown() as address, pytest.raises(OSError, match=f"cannot show metrics on {address}"):
        Exposition(ServerMetrics().registry, "127.0.0.1", int(address.split(":")[1]), None, None)
