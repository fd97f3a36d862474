"""`Client` and `AsyncClient`: the same calls, blocking and awaited."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from sfumato_protos.v1 import gateway_pb2, gateway_pb2_grpc

from sfumato_client.async_edits import AsyncEdits
from sfumato_client.comparison import ComparisonResult, build_comparison
from sfumato_client.edits import Edits
from sfumato_client.families import AsyncFamilies, Families
from sfumato_client.prompt_edits import EditPromptOptions, EditPromptResult, build_edit_prompt
from sfumato_client.rejoin import Rejoin, Request
from sfumato_client.requests import GenerateOptions, build_request
from sfumato_client.results import GenerateResult
from sfumato_client.security import SecurityOptions, channel_credentials, with_key

MAX_MESSAGE_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 300.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A gateway that comes back is found soon.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Options = TypeVar("Options", GenerateOptions, EditPromptOptions)


def without_steps(options: Options) -> Options:
    """The options, with no events of steps unless they are asked for: only the result is looked at."""
    options.setdefault("progress_interval_steps", 0)
    return options


class Client(Edits, Families):
    """Calls a gateway and blocks. A context manager; safe to share between threads."""

    def __init__(
        self, target: str, timeout: float = TIMEOUT_SECONDS, **security: Unpack[SecurityOptions]
    ) -> None:
        """
        Args:
            target: "host:port" of the gateway.
            timeout: deadline of each call, in seconds.
            security: TLS and key; see SecurityOptions. Default: plaintext, no key.
        """
        credentials = channel_credentials(security)
        channel = (
            grpc.secure_channel(target, credentials, CHANNEL_OPTIONS)
            if credentials
            else grpc.insecure_channel(target, CHANNEL_OPTIONS)
        )
        self._channel: grpc.Channel = with_key(channel, target, security)
        super().__init__(self._channel, timeout)
        self._stub: gateway_pb2_grpc.GatewayServiceStub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Makes images. Raises SfumatoError with field, limit and value when refused."""
        result = GenerateResult()
        for event in self.generate_events(prompt, **without_steps(options)):
            result.add(event)
        return result

    def generate_events(
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> Iterator[gateway_pb2.GenerateResponse]:
        """The events as they come. Closing the iterator ends the request, or what on_disconnect says.

        With a request_id a stream that is dropped is joined again.
        """
        yield from self.events_of(build_request(prompt, options))

    def events_of(self, request: gateway_pb2.GenerateRequest) -> Iterator[gateway_pb2.GenerateResponse]:
        """As generate_events, of a message."""
        yield from self._joined(self._stub.Generate, request)

    def _joined(self, method: Any, request: Request) -> Iterator[Any]:
        """The events of a stream, which is joined again where the request has an id."""
        rejoin = Rejoin(request, self.timeout)
        while True:
            call = method(rejoin.sent, timeout=rejoin.timeout)
            try:
                for event in call:
                    rejoin.saw(event)
                    yield event
                return
            except grpc.RpcError as error:
                wait = rejoin.wait_seconds(error)
            finally:
                call.cancel()
            time.sleep(wait)

    def edit_prompt(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> EditPromptResult:
        """Prompt-to-prompt: changes an image by changing its prompt. Raises as generate does."""
        result = EditPromptResult()
        for event in self.edit_prompt_events(prompt, target_prompt, **without_steps(options)):
            result.add(event)
        return result

    def edit_prompt_events(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> Iterator[gateway_pb2.EditPromptResponse]:
        """The events as they come; as generate_events."""
        yield from self._joined(self._stub.EditPrompt, build_edit_prompt(prompt, target_prompt, options))

    def compare(
        self, prompt: str, settings: Mapping[str, GenerateOptions], **options: Unpack[GenerateOptions]
    ) -> ComparisonResult:
        """Makes the same images under several settings of guidance: label to guidance options."""
        result = ComparisonResult()
        for event in self.compare_events(prompt, settings, **without_steps(options)):
            result.add(event)
        return result

    def compare_events(
        self, prompt: str, settings: Mapping[str, GenerateOptions], **options: Unpack[GenerateOptions]
    ) -> Iterator[gateway_pb2.CompareResponse]:
        """The events as they come; as generate_events."""
        yield from self._joined(self._stub.Compare, build_comparison(prompt, settings, options))

    def close(self) -> None:
        """Closes the channel; running calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(AsyncEdits, AsyncFamilies):
    """Calls a gateway from asyncio. An async context manager."""

    def __init__(
        self, target: str, timeout: float = TIMEOUT_SECONDS, **security: Unpack[SecurityOptions]
    ) -> None:
        """As `Client`."""
        credentials = channel_credentials(security)
        channel = (
            grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        )
        self._channel: grpc.aio.Channel = with_key(channel, target, security)
        super().__init__(self._channel, timeout)
        self._stub: gateway_pb2_grpc.GatewayServiceAsyncStub = gateway_pb2_grpc.GatewayServiceStub(
            self._channel
        )

    async def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Makes images. Raises SfumatoError with field, limit and value when refused."""
        result = GenerateResult()
        async for event in self.generate_events(prompt, **without_steps(options)):
            result.add(event)
        return result

    async def generate_events(
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        """As Client.generate_events; cancelling the task ends the stream too."""
        async with contextlib.aclosing(self.events_of(build_request(prompt, options))) as events:
            async for event in events:
                yield event

    async def events_of(
        self, request: gateway_pb2.GenerateRequest
    ) -> AsyncGenerator[gateway_pb2.GenerateResponse]:
        """As generate_events, of a message."""
        async with contextlib.aclosing(self._joined(self._stub.Generate, request)) as events:
            async for event in events:
                yield event

    async def _joined(self, method: Any, request: Request) -> AsyncGenerator[Any]:
        """As Client's."""
        rejoin = Rejoin(request, self.timeout)
        while True:
            call = method(rejoin.sent, timeout=rejoin.timeout)
            try:
                async for event in call:
                    rejoin.saw(event)
                    yield event
                return
            except grpc.aio.AioRpcError as error:
                wait = rejoin.wait_seconds(error)
            finally:
                call.cancel()
            await asyncio.sleep(wait)

    async def edit_prompt(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> EditPromptResult:
        """Prompt-to-prompt: changes an image by changing its prompt. Raises as generate does."""
        result = EditPromptResult()
        async for event in self.edit_prompt_events(prompt, target_prompt, **without_steps(options)):
            result.add(event)
        return result

    async def edit_prompt_events(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> AsyncIterator[gateway_pb2.EditPromptResponse]:
        """As Client.edit_prompt_events; cancelling the task ends the stream too."""
        request = build_edit_prompt(prompt, target_prompt, options)
        async with contextlib.aclosing(self._joined(self._stub.EditPrompt, request)) as events:
            async for event in events:
                yield event

    async def compare(
        self, prompt: str, settings: Mapping[str, GenerateOptions], **options: Unpack[GenerateOptions]
    ) -> ComparisonResult:
        """Makes the same images under several settings of guidance: label to guidance options."""
        result = ComparisonResult()
        async for event in self.compare_events(prompt, settings, **without_steps(options)):
            result.add(event)
        return result

    async def compare_events(
        self, prompt: str, settings: Mapping[str, GenerateOptions], **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[gateway_pb2.CompareResponse]:
        """As Client.compare_events; cancelling the task ends the stream too."""
        request = build_comparison(prompt, settings, options)
        async with contextlib.aclosing(self._joined(self._stub.Compare, request)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        """Closes the channel; running calls are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
