"""The blocking twin: the same calls, driven to their end in the calling thread.

Knows nothing that the asynchronous calls do not: it is the same code over a blocking transport.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from molora_client.base import DEFAULT_EXECUTOR, DEFAULT_ROUTER, DEFAULT_TIMEOUT_S
from molora_client.channel import Tls
from molora_client.inference import InferenceCalls
from molora_client.operations import OperatorCalls
from molora_client.streams import AsyncTextStream, Result, TextStream
from molora_client.transport import BlockingTransport, run_to_end

Params = ParamSpec("Params")
Returned = TypeVar("Returned")


class _Calls(InferenceCalls, OperatorCalls):
    """Every call, over whatever transport it is made with."""


def _blocking(
    method: Callable[Concatenate[_Calls, Params], Coroutine[Any, Any, Returned]],
) -> Callable[Concatenate[Molora, Params], Returned]:
    @functools.wraps(method)
    def blocking(self: Molora, /, *args: Params.args, **kwargs: Params.kwargs) -> Returned:
        return run_to_end(method(self._calls, *args, **kwargs))

    return blocking


def _blocking_stream(
    method: Callable[Concatenate[_Calls, Params], AsyncTextStream[Result]],
) -> Callable[Concatenate[Molora, Params], TextStream[Result]]:
    @functools.wraps(method)
    def stream(self: Molora, /, *args: Params.args, **kwargs: Params.kwargs) -> TextStream[Result]:
        return TextStream(method(self._calls, *args, **kwargs))

    return stream


class Molora:
    """A blocking client of routers and executors; threads may share it, forks may not.

    Arguments as for `AsyncMolora`.
    """

    def __init__(
        self,
        router: str = DEFAULT_ROUTER,
        executor: str = DEFAULT_EXECUTOR,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        transport = BlockingTransport(tls)
        self._calls = _Calls(transport, router, executor, token, tls, timeout_s)

    def __enter__(self) -> Molora:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    route = _blocking(_Calls.route)
    predict = _blocking(_Calls.predict)
    predict_stream = _blocking_stream(_Calls.predict_stream)
    generate = _blocking(_Calls.generate)
    generate_stream = _blocking_stream(_Calls.generate_stream)
    score = _blocking(_Calls.score)
    features = _blocking(_Calls.features)
    experts = _blocking(_Calls.experts)
    server_info = _blocking(_Calls.server_info)
    router_info = _blocking(_Calls.router_info)
    load_expert = _blocking(_Calls.load_expert)
    unload_expert = _blocking(_Calls.unload_expert)
    reload_expert = _blocking(_Calls.reload_expert)
    close = _blocking(_Calls.close)
