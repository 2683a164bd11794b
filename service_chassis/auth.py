"""Who may call what: bearer tokens with roles, and the written table of methods.

Knows tokens and full method names; knows no service by name except health and reflection.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

from google.protobuf import descriptor_pool

from service_chassis.errors import PermissionDenied, Unauthenticated
from service_chassis.watched import Watched


class Role(enum.Enum):
    """What a method needs, and what a token grants. `admin` grants every other role."""

    PUBLIC = "public"
    INFER = "infer"
    METRICS = "metrics"
    ADMIN = "admin"


AuthTable = Mapping[str, Role]
_FINGERPRINT_CHARS = 16
CALLER: ContextVar[str] = ContextVar("caller")
"""Who makes the call that is being handled, as `caller` says; the interceptor sets it."""

# The methods that the chassis itself registers on every server.
CHASSIS_AUTH: AuthTable = {
    "/grpc.health.v1.Health/Check": Role.PUBLIC,
    "/grpc.health.v1.Health/Watch": Role.PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.INFER,
}
# What a server answers over HTTP beside its calls.
METRICS_AUTH: AuthTable = {"GET /metrics": Role.METRICS}


class TokenTable:
    """The tokens a server accepts, kept as sha256 digests.

    Args:
        grants: Pairs of role and token; one token may have several roles.
    """

    def __init__(self, grants: Iterable[tuple[Role, str]]) -> None:
        self._grants = [(_digest(token), role) for role, token in grants]

    @classmethod
    def read(cls, path: Path) -> TokenTable:
        """Read a tokens file: one `role token` a line; blank lines and `#` comments are skipped.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            OSError: The file cannot be read.
            ValueError: A line is not `role token` or the file names no token; no token is quoted.
        """
        grantable = {role.value: role for role in Role if role is not Role.PUBLIC}
        grants = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or words[0] not in grantable:
                expected = "|".join(grantable)
                raise ValueError(f"line {number} is not '<{expected}> <token>'")
            grants.append((grantable[words[0]], words[1]))
        if not grants:
            raise ValueError("it names no token")
        return cls(grants)

    def roles(self, authorization: Sequence[str]) -> frozenset[Role]:
        """The roles of the caller.

        Args:
            authorization: Every `authorization` header of the call.

        Returns:
            The roles that the token grants.

        Raises:
            Unauthenticated: Not exactly one header, not a bearer token, or an unknown token.
        """
        if len(authorization) != 1:
            raise _unauthenticated()
        scheme, _, token = authorization[0].partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthenticated()
        offered = _digest(token)
        # Every entry is compared, so that the time taken says nothing about the tokens.
        matches = [(hmac.compare_digest(offered, known), role) for known, role in self._grants]
        granted = frozenset(role for same, role in matches if same)
        if not granted:
            raise _unauthenticated()
        return granted


def watch_tokens(path: Path) -> Watched[TokenTable]:
    """The table of a tokens file, whenever it is asked for: a line that is gone is refused.

    Raises:
        OSError: The file cannot be read now.
        ValueError: It is no tokens file.
    """
    return Watched("tokens", [path], lambda: TokenTable.read(path))


def caller(tokens: Sequence[str], certificates: Sequence[bytes]) -> str:
    """Who calls, without a secret: `token:` or `certificate:` and a fingerprint, or `anonymous`.

    Args:
        tokens: The `authorization` headers whose token was checked; empty where none is asked for.
        certificates: The client's certificate in PEM, if it has shown one.

    Returns:
        Of a token, what `printf %s TOKEN | sha256sum | cut -c-16` prints.
    """
    if tokens:
        return f"token:{_digest(tokens[0].partition(' ')[2]).hex()[:_FINGERPRINT_CHARS]}"
    if certificates:
        return f"certificate:{hashlib.sha256(certificates[0]).hexdigest()[:_FINGERPRINT_CHARS]}"
    return "anonymous"


def require(needed: Role, granted: frozenset[Role]) -> None:
    """Refuse a caller whose roles do not include the needed one.

    Raises:
        PermissionDenied: The role is missing.
    """
    if needed is Role.PUBLIC or needed in granted or Role.ADMIN in granted:
        return
    raise PermissionDenied(
        "ROLE_MISSING",
        "This token does not have the role that the method needs; use a token that has it.",
        role=needed.value,
    )


def check_auth_table(services: Sequence[str], table: AuthTable) -> None:
    """Refuse to start with a method that no line of the table names, or a line without a method.

    Args:
        services: Full names of the services that the server registers.
        table: Full method name (`/package.Service/Method`) to role.

    Raises:
        ValueError: The table and the descriptors differ; the message names the methods.
    """
    pool = descriptor_pool.Default()
    methods = {
        f"/{name}/{method.name}"
        for name in services
        for method in pool.FindServiceByName(name).methods
    }
    if missing := sorted(methods - table.keys()):
        raise ValueError(f"no role in the auth table for: {', '.join(missing)}")
    if stale := sorted(table.keys() - methods):
        raise ValueError(f"the auth table names methods that do not exist: {', '.join(stale)}")


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_REFUSED", "Send one 'authorization: Bearer <token>' header with a valid token."
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
