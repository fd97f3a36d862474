"""The families that a gateway serves: listed, loaded, let go."""

from sfumato_protos.v1 import gateway_pb2

from sfumato_client.calls import AsyncCalls, Calls
from sfumato_client.requests import family_name


class Families(Calls):
    """Blocking; part of `Client`."""

    def list_families(self) -> list[gateway_pb2.Family]:
        """The families served, and what each can do; the default one first."""
        return list(self.families_and_limits().families)

    def families_and_limits(self) -> gateway_pb2.ListFamiliesResponse:
        """The families served, those that could be loaded, and the memory that there is for them."""
        return self._call(self._gateway.ListFamilies, gateway_pb2.ListFamiliesRequest())

    def load_family(self, name: str) -> gateway_pb2.Family:
        """Loads a family at all services, by its folder's name there, and serves it beside the others.

        Raises SfumatoError with field, limit and value when refused, say because it would not fit.
        """
        request = gateway_pb2.LoadFamilyRequest(name=family_name(name))
        return self._call(self._gateway.LoadFamily, request).family

    def unload_family(self, name: str) -> None:
        """Lets a family go: returns when its running requests have ended and its memory is free.

        Raises SfumatoError, FAILED_PRECONDITION, if some still run near the timeout: it is served as before.
        """
        self._call(self._gateway.UnloadFamily, gateway_pb2.UnloadFamilyRequest(name=family_name(name)))


class AsyncFamilies(AsyncCalls):
    """The same, awaited; part of `AsyncClient`."""

    async def list_families(self) -> list[gateway_pb2.Family]:
        """As Families.list_families."""
        return list((await self.families_and_limits()).families)

    async def families_and_limits(self) -> gateway_pb2.ListFamiliesResponse:
        """As Families.families_and_limits."""
        return await self._call(self._gateway.ListFamilies, gateway_pb2.ListFamiliesRequest())

    async def load_family(self, name: str) -> gateway_pb2.Family:
        """As Families.load_family."""
        request = gateway_pb2.LoadFamilyRequest(name=family_name(name))
        return (await self._call(self._gateway.LoadFamily, request)).family

    async def unload_family(self, name: str) -> None:
        """As Families.unload_family."""
        await self._call(self._gateway.UnloadFamily, gateway_pb2.UnloadFamilyRequest(name=family_name(name)))
