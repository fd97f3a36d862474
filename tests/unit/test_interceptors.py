"""What stands around every call: the caller first, then the message; what is logged, and what never."""

import asyncio
import contextlib
import gc
import json
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2, status_pb2
from sfumato_protos.v1 import encoder_pb2, encoder_pb2_grpc, gateway_pb2, gateway_pb2_grpc

from sfumato.common import audit, interceptors, logs
from sfumato.common.admission import Metadata, TrustGateway
from sfumato.common.calls import Caller, wait_seconds
from sfumato.common.errors import InvalidArgument, ResourceExhausted, Unauthenticated
from sfumato.common.interceptors import CallInterceptor
from sfumato.gateway.failures import is_lost

SECRET = "a prompt that nobody may read"
WORK: "list[weakref.ref[set[int]]]" = []  # what the servicer's calls that fail had in hand


class Servicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Fails as it is told."""

    async def Generate(
        self, request: gateway_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        work = {request.seed}
        WORK.append(weakref.ref(work))
        if request.seed == 1:
            raise KeyError(request.prompt)
        if request.seed == 3:
            yield gateway_pb2.GenerateResponse()
            await asyncio.sleep(60)
        while request.seed == 4:  # more than anybody reads
            yield gateway_pb2.GenerateResponse(image=gateway_pb2.Image(data=bytes(1 << 20)))
        if request.seed == 2:
            raise InvalidArgument("prompt", "shorter", request.prompt)
        yield gateway_pb2.GenerateResponse()

    async def ListFamilies(
        self, request: gateway_pb2.ListFamiliesRequest, context: Any
    ) -> gateway_pb2.ListFamiliesResponse:
        work = {0}
        WORK.append(weakref.ref(work))
        error = ResourceExhausted("requests", 1, 2)
        error.retry_seconds = 1.25
        raise error


class Door(TrustGateway):
    """Takes one key."""

    def identify(self, method: str, metadata: Metadata) -> Caller:
        if ("authorization", "Bearer key") not in [tuple(entry) for entry in metadata]:
            raise Unauthenticated("a credential is needed")
        return Caller("acme", "ci", "acme")


class Written:
    """What is logged."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture, self._text = capture, ""

    def getvalue(self) -> str:
        """All of it so far."""
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    forget_configuration()
    yield Written(capsys)
    structlog.reset_defaults()
    forget_configuration()


def forget_configuration() -> None:
    """Loggers keep what they were configured with at first: here a standard error that ends with the test."""
    for logger in (audit.log, interceptors.log):
        logger.__dict__.pop("bind", None)


@contextlib.asynccontextmanager
async def served(log_prompts: bool = False, level: str = "info") -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server with the interceptor."""
    logs.configure(level, log_prompts)
    structlog.configure(cache_logger_on_first_use=False)
    ready = asyncio.Event()
    ready.set()
    server = grpc.aio.server(interceptors=[CallInterceptor(ready, Door(), log_prompts)])
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def generate(channel: grpc.aio.Channel, data: bytes, key: str = "key") -> grpc.aio.AioRpcError | None:
    """How it ends."""
    call = channel.unary_stream("/sfumato.v1.GatewayService/Generate")
    try:
        async for _ in call(data, metadata=(("authorization", f"Bearer {key}"),), timeout=20):
            pass
    except grpc.aio.AioRpcError as error:
        return error
    return None


def lines(out: Written, event: str) -> list[dict[str, Any]]:
    """The log's lines of that event."""
    given = [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]
    return [line for line in given if line["event"] == event]


def request(seed: int) -> bytes:
    return gateway_pb2.GenerateRequest(prompt=SECRET, seed=seed).SerializeToString()


async def test_bytes_that_are_no_message_are_an_invalid_argument(written: Written) -> None:
    async with served() as channel:
        error = await generate(channel, b"\x0a\x05abc")
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "request must be the message" in (error.details() or "")
        not_utf8 = await generate(channel, b"\x12\x02\xff\xfe")
        assert not_utf8 is not None
        assert not_utf8.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_whoever_has_no_key_is_refused_before_the_message(written: Written) -> None:
    async with served() as channel:
        error = await generate(channel, b"\xff\xff", key="guess")
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    (line,) = lines(written, "call")
    assert (line["code"], line["tenant"], line["credential"]) == ("UNAUTHENTICATED", "", "")
    assert "guess" not in written.getvalue()


async def test_each_request_has_an_audit_line_whatever_the_level(written: Written) -> None:
    async with served(level="error") as channel:
        assert await generate(channel, request(0)) is None
    (line,) = lines(written, "call")
    known = {name: line[name] for name in ("method", "code", "tenant", "credential")}
    assert known == {
        "method": "/sfumato.v1.GatewayService/Generate", "code": "OK", "tenant": "acme", "credential": "ci",
    }  # fmt: skip
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["seconds"] >= 0
    assert line["request_id"]


async def test_streams_that_clients_leave_do_not_end_the_process(written: Written) -> None:
    async with served() as channel:
        for _ in range(30):
            call = channel.unary_stream("/sfumato.v1.GatewayService/Generate")(
                request(3), metadata=(("authorization", "Bearer key"),)
            )
            await call.read()
            call.cancel()
        del call
        await asyncio.sleep(0.1)
        gc.collect()
        await asyncio.sleep(0.1)
        assert await generate(channel, request(0)) is None
    assert {line["code"] for line in lines(written, "call")} == {"CANCELLED", "OK"}
    assert all(line["peer"] for line in lines(written, "call"))


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_a_prompt_is_logged_only_where_it_is_asked_for(written: Written, seed: int) -> None:
    async with served() as channel:
        error = await generate(channel, request(seed))
    assert (error is None) == (seed == 0)
    assert SECRET not in written.getvalue()
    if seed == 1:
        (failed,) = lines(written, "failed")
        assert failed["exception"].endswith("KeyError")
        assert "in Generate" in failed["exception"]
    if seed == 2:
        (refused,) = lines(written, "refused")
        assert (refused["field"], refused["limit"]) == ("prompt", "shorter")
    async with served(log_prompts=True) as channel:
        await generate(channel, request(seed))
    assert lines(written, "call")[-1]["prompts"] == [SECRET]


async def test_a_stream_left_while_an_answer_is_on_its_way_was_cancelled(written: Written) -> None:
    async with served() as channel:
        call = channel.unary_stream("/sfumato.v1.GatewayService/Generate")(
            request(4), metadata=(("authorization", "Bearer key"),)
        )
        await call.read()
        await asyncio.sleep(0.2)  # until the next one finds no room
        call.cancel()
        found: list[dict[str, Any]] = []
        for _ in range(100):
            await asyncio.sleep(0.05)
            gc.collect()
            if found := found or lines(written, "call"):
                break
    assert [line["code"] for line in found] == ["CANCELLED"]


async def test_what_a_failed_call_had_in_hand_is_free_when_it_ends(written: Written) -> None:
    """And not when Python next looks for cycles: requests are megabytes."""
    WORK.clear()
    gc.disable()
    try:
        async with served() as channel:
            for seed in (1, 2):
                assert await generate(channel, request(seed)) is not None
            list_families = channel.unary_unary("/sfumato.v1.GatewayService/ListFamilies")
            with pytest.raises(grpc.aio.AioRpcError):
                await list_families(b"", metadata=(("authorization", "Bearer key"),))
            assert [work() for work in WORK] == [None] * 3
    finally:
        gc.enable()


async def test_the_time_to_wait_is_a_retry_info(written: Written) -> None:
    async with served() as channel:
        call = channel.unary_unary("/sfumato.v1.GatewayService/ListFamilies")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"", metadata=(("authorization", "Bearer key"),), timeout=20)
    trailing = dict(error.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])  # type: ignore[arg-type]
    retry = error_details_pb2.RetryInfo()
    assert status.details[-1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1250


async def test_an_rpc_of_any_other_service_is_behind_the_same_door(written: Written) -> None:
    """Not only those of sfumato.v1: what is registered is checked, unless it is health or reflection."""

    async def embed(request: Any, context: Any) -> encoder_pb2.EmbedTextResponse:
        return encoder_pb2.EmbedTextResponse()

    logs.configure("info")
    ready = asyncio.Event()
    ready.set()
    server = grpc.aio.server(interceptors=[CallInterceptor(ready, Door())])
    handler = grpc.unary_unary_rpc_method_handler(
        embed, encoder_pb2.EmbedTextRequest.FromString, encoder_pb2.EmbedTextResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("else.Service", {"Do": handler}),))
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(encoder_pb2_grpc.EncoderServiceServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/else.Service/Do")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"", timeout=20)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await call(b"", metadata=(("authorization", "Bearer key"),), timeout=20) == b""
    await server.stop(None)


@pytest.mark.parametrize(("seconds", "nanos"), [(-1, 0), (0, -1), (0, 10**9), (2**62, 0)])
def test_a_wait_that_is_no_duration_is_refused(seconds: int, nanos: int) -> None:
    wait = operations_pb2.WaitOperationRequest(timeout={"seconds": seconds, "nanos": nanos})
    with pytest.raises(InvalidArgument, match="timeout must be 0 to"):
        wait_seconds(wait)


def test_a_wait_is_in_seconds() -> None:
    assert wait_seconds(operations_pb2.WaitOperationRequest()) is None
    half = operations_pb2.WaitOperationRequest(timeout={"seconds": 1, "nanos": 500_000_000})
    assert wait_seconds(half) == 1.5


def test_a_stream_that_ended_while_it_was_written_to_is_lost() -> None:
    none = grpc.aio.Metadata()

    def error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(code, none, none, details)

    assert is_lost(error(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert is_lost(error(grpc.StatusCode.UNAVAILABLE, ""))
    assert not is_lost(error(grpc.StatusCode.INTERNAL, "Denoise failed; the log has request 1"))
    assert not is_lost(error(grpc.StatusCode.INVALID_ARGUMENT, ""))
