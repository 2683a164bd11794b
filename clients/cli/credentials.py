"""Checks of certificates and of files that hold secrets; none of them is shown.

Knows PEM files and who may read a file; knows no call.
"""

from __future__ import annotations

import contextlib
import datetime
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.cli.findings import BAD_SETTINGS, Finding, State, ok

if TYPE_CHECKING:
    from service_chassis.settings import ServerSettings

_RENEW_DAYS = 14


def check_tls(settings: ServerSettings, service: str) -> Finding:
    """Whether the certificate is good today, for whom, and until when."""
    check, files = f"{service}: TLS", settings.tls_files
    if files is None:
        return ok(check, "off: reachable from this machine only")
    also = ", clients show one too" if files.client_ca else ""
    return check_certificate(check, files.certificate, files.key, also=also)


def check_tokens(settings: ServerSettings, service: str) -> Finding:
    """Whether anybody but the service can read the tokens."""
    check, path = f"{service}: tokens", settings.tokens_file
    if path is None:
        return ok(check, "none: every caller may do all")
    return check_private(check, path, "asked for, and the file is the service's own")


def check_certificate(
    check: str, certificate: Path, key: Path, *, of_client: bool = False, also: str = ""
) -> Finding:
    """Whether one certificate is good today, for whom, and until when.

    Args:
        check: Names the check.
        certificate: PEM chain.
        key: Of its first certificate.
        of_client: A client shows it, not a server.
        also: What else there is to say if all is well.
    """
    try:
        facts = certificate_facts(certificate, key, of_client=of_client)
    except ssl.SSLCertVerificationError as error:
        remedy = "renew it; a server that runs takes the new file by itself"
        return Finding(check, State.FAILED, error.verify_message, remedy, BAD_SETTINGS)
    names = ", ".join(name for _, name in facts.get("subjectAltName", ()))
    end = datetime.datetime.fromtimestamp(
        ssl.cert_time_to_seconds(facts["notAfter"]), datetime.timezone.utc
    )
    days = (end - datetime.datetime.now(datetime.timezone.utc)).days
    found = f"for {names or 'no name at all'}, until {end:%Y-%m-%d}"
    if days < _RENEW_DAYS:
        return Finding(check, State.WARNING, found, f"renew it within {days} days")
    return ok(check, f"{found}{also}")


def check_private(check: str, path: Path, found: str) -> Finding:
    """Whether a file of secrets is its owner's alone; `found` is said if it is."""
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"{path} has mode {stat.S_IMODE(mode):o}, others can read it"
        return Finding(check, State.WARNING, problem, f"chmod 600 {path}")
    return ok(check, found)


def certificate_facts(certificate: Path, key: Path, *, of_client: bool) -> dict[str, Any]:
    """What a peer that trusts just this certificate gets to know of it.

    Args:
        certificate: PEM chain.
        key: Of its first certificate.
        of_client: A client shows it, not a server.

    Raises:
        ssl.SSLCertVerificationError: It is not good today.
    """
    client, server = (
        ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
    )
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for side in (client, server):
        side.load_cert_chain(certificate, key)
    checking = server if of_client else client
    checking.verify_mode = ssl.CERT_REQUIRED
    checking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    checking.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for turn in (asking, answering, asking, answering):
        with contextlib.suppress(ssl.SSLWantReadError):
            turn.do_handshake()
    facts: dict[str, Any] = (answering if of_client else asking).getpeercert() or {}
    return facts
