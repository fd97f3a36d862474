"""Edits through the gateway: EditorService and Operations, forwarded to the editor, over its restarts."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from sfumato_protos.v1 import editor_pb2, editor_pb2_grpc

from sfumato.common import calls
from sfumato.common.calls import Context
from sfumato.common.errors import ResourceExhausted, Unavailable, Unimplemented
from sfumato.common.server import channel_options
from sfumato.common.status import ForwardedError
from sfumato.common.tls import open_channel
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.failures import GONE
from sfumato.gateway.message_parts import take_request_id

RETRY_SECONDS = 0.2


class EditorChannel:
    """The editor, or none. Every call is safe to repeat: a submission has a request id."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.target, self.wait_seconds = settings.editor_target, settings.editor_wait_seconds
        self.max_image_bytes, self.max_video_bytes = settings.max_image_bytes, settings.max_video_bytes
        options = [
            *channel_options(settings.max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self.channel = open_channel(self.target or "127.0.0.1:1", options, settings.services_tls)
        self.editor: Any = editor_pb2_grpc.EditorServiceStub(self.channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(self.channel)

    async def methods(self) -> list[str]:
        """What the editor serves; nothing without one, or while it does not answer."""
        if not self.target:
            return []
        try:
            info = await self.editor.GetEditorInfo(editor_pb2.GetEditorInfoRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return []
        return list(info.methods)

    def check_offered(self) -> None:
        """Raises Unimplemented without an editor."""
        if not self.target:
            raise Unimplemented("this gateway offers no editing: SFUMATO_GATEWAY_EDITOR_TARGET is not set")

    def lost(self, error: grpc.aio.AioRpcError, since: float) -> None:
        """Returns where the call is to be repeated.

        Raises:
            Unavailable: the editor has been silent for too long since that time.
            ForwardedError: it is another error.
        """
        if error.code() not in GONE:
            raise ForwardedError(error) from error
        if time.monotonic() - since > self.wait_seconds:
            raise Unavailable(f"the editor at {self.target} does not answer: {error.details()}") from error

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """A unary call, repeated while the editor restarts."""
        self.check_offered()
        since = time.monotonic()
        while True:
            try:
                return await method(request, **calls.outgoing())
            except grpc.aio.AioRpcError as error:
                self.lost(error, since)
            await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Closes the channel."""
        await self.channel.close()


class EditorForwarder(editor_pb2_grpc.EditorServiceServicer):
    """Serves EditorService to clients."""

    def __init__(self, channel: EditorChannel) -> None:
        self.channel = channel

    async def GetEditorInfo(
        self, request: editor_pb2.GetEditorInfoRequest, context: Context
    ) -> editor_pb2.GetEditorInfoResponse:
        info: editor_pb2.GetEditorInfoResponse = await self.channel.call(
            self.channel.editor.GetEditorInfo, request
        )
        return info

    async def Edit(self, request: editor_pb2.EditRequest, context: Context) -> operations_pb2.Operation:
        image, video = self.channel.max_image_bytes, self.channel.max_video_bytes
        for field, limit in (("image", image), ("mask", video if request.video else image), ("video", video)):
            if (size := len(getattr(request, field))) > limit:
                raise ResourceExhausted(field, f"at most {limit} bytes", f"{size} bytes")
        take_request_id(request.request_id)
        request.request_id = request.request_id or uuid.uuid4().hex
        return await self.channel.call(self.channel.editor.Edit, request)

    async def WatchEdit(
        self, request: editor_pb2.WatchEditRequest, context: Context
    ) -> AsyncIterator[editor_pb2.WatchEditResponse]:
        self.channel.check_offered()
        since = time.monotonic()
        while True:
            try:
                async for event in self.channel.editor.WatchEdit(request, **calls.outgoing()):
                    yield event
                    request.after_iteration, since = event.iteration, time.monotonic()
                return
            except grpc.aio.AioRpcError as error:
                self.channel.lost(error, since)
            await asyncio.sleep(RETRY_SECONDS)


class OperationsForwarder(operations_pb2_grpc.OperationsServicer):
    """Serves google.longrunning.Operations to clients."""

    def __init__(self, channel: EditorChannel) -> None:
        self.channel = channel

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        return await self.channel.call(self.channel.operations.ListOperations, request)

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self.channel.call(self.channel.operations.GetOperation, request)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        self.channel.check_offered()
        wanted = calls.wait_seconds(request)
        end = time.monotonic() + (wanted or 0)
        since = time.monotonic()
        while True:
            if wanted is not None:
                request.timeout.FromMilliseconds(max(0, int(1000 * (end - time.monotonic()))))
            asked = time.monotonic()
            try:
                return await self.channel.operations.WaitOperation(request, **calls.outgoing())
            except grpc.aio.AioRpcError as error:
                # A wait that lasted was one that was answered.
                since = time.monotonic() if time.monotonic() - asked > self.channel.wait_seconds else since
                self.channel.lost(error, since)
            await asyncio.sleep(RETRY_SECONDS)

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        return await self.channel.call(self.channel.operations.CancelOperation, request)

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        return await self.channel.call(self.channel.operations.DeleteOperation, request)


def register_editing(channel: EditorChannel, server: grpc.aio.Server) -> None:
    """Adds both services to a server."""
    editor_pb2_grpc.add_EditorServiceServicer_to_server(EditorForwarder(channel), server)
    operations_pb2_grpc.add_OperationsServicer_to_server(OperationsForwarder(channel), server)
