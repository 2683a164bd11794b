import subprocess
import sys

import pytest

from molora_client.channel import Tls, channel_options, is_loopback


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/molora.sock", True),
        ("0.0.0.0:1", False),
        ("192.168.1.4:1", False),
        ("localhost.example:1", False),
        ("dns:///127.0.0.1:1", False),
        ("127.0.0.1.example:1", False),
        ("", False),
    ],
)
def test_loopback(address, expected):
    assert is_loopback(address) is expected


def test_options_that_grpc_gets_wrong_by_default():
    options = dict(channel_options("127.0.0.1:1", None))
    assert options["grpc.max_send_message_length"] == 16 * 1024 * 1024
    assert options["grpc.max_receive_message_length"] == 16 * 1024 * 1024
    assert options["grpc.per_rpc_retry_buffer_size"] == 16 * 1024 * 1024
    assert options["grpc.enable_http_proxy"] == 0
    assert "grpc.service_config" not in options
    assert "grpc.enable_http_proxy" not in dict(channel_options("executor.example:1", None))


def test_the_expected_server_name_is_passed_on():
    options = dict(channel_options("10.0.0.1:1", Tls(server_name="executor.example")))
    assert options["grpc.ssl_target_name_override"] == "executor.example"


def test_a_missing_certificate_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="no-such"):
        Tls(ca_file=tmp_path / "no-such.pem").credentials()


def test_the_sdk_imports_no_other_room():
    code = (
        "import sys, molora_client\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('service_chassis','router_service','executor_service','training','clients','torch',"
        "'numpy','typer','rich') or m == 'google.rpc'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
