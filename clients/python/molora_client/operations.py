"""The calls of an operator: what runs, and which experts are loaded.

Knows no channel option, no retry rule and no error detail; those have modules of their own.
"""

from __future__ import annotations

from google.protobuf.message import Message

from molora.v1 import admin_pb2, executor_pb2, router_pb2
from molora_client import results, wire
from molora_client.base import ClientBase, new_request_id
from molora_client.errors import InvalidArgumentError
from molora_client.replicas import Replicas
from molora_client.wire import Method, Reply


class OperatorCalls(ClientBase):
    """The part of `AsyncMolora` that looks at servers and changes their experts."""

    async def experts(self, *, timeout_s: float | None = None) -> results.Experts:
        """The experts that the executor has loaded, in expert-set order.

        Raises:
            MoloraError: The call failed.
        """
        request = executor_pb2.ListExpertsRequest()
        reply = await self._ask(self._executor, wire.LIST_EXPERTS, request, timeout_s)
        experts = tuple(wire.decode_expert(expert) for expert in reply.experts)
        return results.Experts(experts, reply.expert_set)

    async def server_info(self, *, timeout_s: float | None = None) -> results.ServerInfo:
        """What the executor runs.

        Raises:
            MoloraError: The call failed.
        """
        request = executor_pb2.GetServerInfoRequest()
        reply = await self._ask(self._executor, wire.GET_SERVER_INFO, request, timeout_s)
        return wire.decode_server_info(reply)

    async def router_info(self, *, timeout_s: float | None = None) -> results.RouterInfo:
        """The router's bundle and the policy in force.

        Raises:
            MoloraError: The call failed.
        """
        request = router_pb2.GetRouterInfoRequest()
        reply = await self._ask(self._router, wire.GET_ROUTER_INFO, request, timeout_s)
        return wire.decode_router_info(reply)

    async def load_expert(
        self, name: str, path: str, *, timeout_s: float | None = None
    ) -> results.ExpertChange:
        """Loads an expert (admin role); never sent twice.

        Args:
            name: Its name from now on.
            path: Adapter directory on the server, relative to a root it was configured with.
            timeout_s: Deadline in seconds; None for the client's.

        Raises:
            MoloraError: The call failed; after UnavailableError look at `experts()`.
        """
        request = admin_pb2.LoadExpertRequest(name=name, path=path)
        reply = await self._change(wire.LOAD_EXPERT, request, timeout_s)
        return results.ExpertChange(wire.decode_expert(reply.expert), reply.expert_set)

    async def unload_expert(
        self,
        name: str,
        *,
        expected_generation: int | None = None,
        timeout_s: float | None = None,
    ) -> results.ExpertChange:
        """Unloads an expert once no request holds it (admin role); never sent twice.

        Args:
            name: The expert.
            expected_generation: Unload only this generation; None for any.
            timeout_s: Deadline in seconds; None for the client's.

        Raises:
            MoloraError: The call failed; after UnavailableError look at `experts()`.
        """
        request = admin_pb2.UnloadExpertRequest(name=name, expected_generation=expected_generation)
        reply = await self._change(wire.UNLOAD_EXPERT, request, timeout_s)
        return results.ExpertChange(wire.decode_expert(reply.expert), reply.expert_set)

    async def reload_expert(
        self,
        name: str,
        *,
        expected_generation: int,
        path: str = "",
        timeout_s: float | None = None,
    ) -> results.ExpertChange:
        """Replaces an expert if nobody else has (admin role); never sent twice.

        Args:
            name: The expert.
            expected_generation: The generation it must still have.
            path: As for `load_expert`; empty for where it was loaded from.
            timeout_s: Deadline in seconds; None for the client's.

        Raises:
            MoloraError: The call failed; after UnavailableError look at `experts()`.
        """
        request = admin_pb2.ReloadExpertRequest(
            name=name, path=path, expected_generation=expected_generation
        )
        reply = await self._change(wire.RELOAD_EXPERT, request, timeout_s)
        return results.ExpertChange(wire.decode_expert(reply.expert), reply.expert_set)

    async def _ask(
        self, replicas: Replicas, method: Method[Reply], request: Message, timeout_s: float | None
    ) -> Reply:
        attempts = self._attempts(timeout_s)
        return await self._caller.unary(replicas, method, request, attempts, new_request_id())

    async def _change(
        self, method: Method[Reply], request: Message, timeout_s: float | None
    ) -> Reply:
        if len(self._executor.addresses) > 1:
            raise InvalidArgumentError(
                "which of the executors should change its experts is not said",
                reason="SEVERAL_EXECUTORS",
            )
        # An UNAVAILABLE change may have happened: the operator looks before sending it again.
        attempts = self._attempts(timeout_s, repeatable=False)
        return await self._caller.unary(self._executor, method, request, attempts, new_request_id())
