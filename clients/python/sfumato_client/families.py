"""The families that a gateway serves: listed, loaded, let go."""

import grpc
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc

from sfumato_client.errors import from_rpc_error
from sfumato_client.requests import family_name


class Families:
    """Blocking."""

    _stub: gateway_pb2_grpc.GatewayServiceStub
    timeout: float

    def list_families(self) -> list[gateway_pb2.Family]:
        """The families served, and what each can do; the default one first."""
        return list(self.families_and_limits().families)

    def families_and_limits(self) -> gateway_pb2.ListFamiliesResponse:
        """The families served, those that could be loaded, and the memory that there is for them."""
        try:
            return self._stub.ListFamilies(gateway_pb2.ListFamiliesRequest(), timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def load_family(self, name: str) -> gateway_pb2.Family:
        """Loads a family at all services, by its folder's name there, and serves it beside the others.

        Raises SfumatoError with field, limit and value when refused, say because it would not fit.
        """
        try:
            request = gateway_pb2.LoadFamilyRequest(name=family_name(name))
            return self._stub.LoadFamily(request, timeout=self.timeout).family
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def unload_family(self, name: str) -> None:
        """Lets a family go: returns when its running requests have ended and its memory is free.

        Raises SfumatoError, FAILED_PRECONDITION, if some still run near the timeout: it is served as before.
        """
        try:
            request = gateway_pb2.UnloadFamilyRequest(name=family_name(name))
            self._stub.UnloadFamily(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


class AsyncFamilies:
    """The same, awaited."""

    _stub: "gateway_pb2_grpc.GatewayServiceAsyncStub"
    timeout: float

    async def list_families(self) -> list[gateway_pb2.Family]:
        """As Families.list_families."""
        return list((await self.families_and_limits()).families)

    async def families_and_limits(self) -> gateway_pb2.ListFamiliesResponse:
        """As Families.families_and_limits."""
        try:
            return await self._stub.ListFamilies(gateway_pb2.ListFamiliesRequest(), timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def load_family(self, name: str) -> gateway_pb2.Family:
        """As Families.load_family."""
        try:
            request = gateway_pb2.LoadFamilyRequest(name=family_name(name))
            return (await self._stub.LoadFamily(request, timeout=self.timeout)).family
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def unload_family(self, name: str) -> None:
        """As Families.unload_family."""
        try:
            request = gateway_pb2.UnloadFamilyRequest(name=family_name(name))
            await self._stub.UnloadFamily(request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
