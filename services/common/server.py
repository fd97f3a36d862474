"""Starts and stops a service: health, reflection, metrics, logs, graceful drain."""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from sfumato.common import logs, tracing
from sfumato.common.admission import Admission, TrustGateway
from sfumato.common.config import ServerSettings
from sfumato.common.errors import SfumatoError
from sfumato.common.interceptors import CallInterceptor
from sfumato.common.metrics import BUILD, IS_SERVING
from sfumato.common.open_inference import SERVICE as OPEN_INFERENCE
from sfumato.common.open_inference import add_open_inference
from sfumato.common.tls import server_credentials

log = structlog.get_logger()

SERVING = health_pb2.HealthCheckResponse.SERVING
SOUND_SECONDS = 1.0  # how often a service that has `is_sound` is asked
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Servicer(Protocol):
    """What a service hands to `run`."""

    service_name: str  # for health; with `also_serves`, a tuple, what reflection lists
    # One that has `open_models`, a function, serves that table by the Open Inference Protocol too.

    def __init__(self, settings: Any) -> None:
        """Takes its settings; what costs time is for `load`."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to the server."""

    async def load(self) -> None:
        """Loads and warms what it serves; the service is NOT_SERVING until this returns."""

    async def close(self) -> None:
        """Lets go of threads and channels."""


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options that servers and channels share."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # One frame per message: cuts the round trip of images and large latents to a third.
        ("grpc.http2.max_frame_size", 16 * 2**20 - 1),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Options of a server."""
    age = settings.max_connection_age_seconds
    return [
        *channel_options(settings.max_message_bytes),
        # Calls under way keep an aged connection until they end.
        *([("grpc.max_connection_age_ms", int(1000 * age))] if age else []),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def run(settings: ServerSettings, servicer: type[Servicer]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. The entry point of each service."""
    logs.configure(settings.log_level, settings.log_prompts)
    send_last_spans = tracing.configure(servicer.service_name)
    try:
        uvloop.run(serve(settings, servicer(settings)))
    except SfumatoError as error:  # weights that are missing or wrong, a device that is not here
        log.error("cannot serve", service=servicer.service_name, error=error.message)
        sys.exit(1)
    finally:
        send_last_spans()


async def serve(settings: ServerSettings, servicer: Servicer) -> None:
    """Listens at once, serves when loaded, stops at a signal."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    ready = asyncio.Event()
    admission: Admission = getattr(servicer, "admission", TrustGateway())
    server = grpc.aio.server(
        interceptors=[CallInterceptor(ready, admission, settings.log_prompts)],
        options=server_options(settings),
    )
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    servicer.register(server)
    served = [servicer.service_name, *getattr(servicer, "also_serves", ())]
    if models := getattr(servicer, "open_models", None):
        add_open_inference(server, servicer.service_name, models, partial(_is_serving, health))
        served.append(OPEN_INFERENCE)
    if settings.reflection:
        names = (*served, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    await _set_health(health, servicer.service_name, NOT_SERVING)
    await health.set("liveness", SERVING)
    port = _add_port(server, settings)
    IS_SERVING.set(0)
    BUILD.labels(servicer.service_name, version("sfumato")).set(1)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, settings.host)
    await server.start()
    probed = await _serve_health_alone(health, settings)
    tls = "mutual" if settings.tls_client_ca else "server" if settings.tls else "off"
    log.info("listening", service=servicer.service_name, host=settings.host, port=port, tls=tls)
    try:
        await _until_loaded(servicer, stop)
        # The collector would look through half a million objects of imports and models now and then, for 0.2
        # to 0.3 s in which nothing else runs. They stay anyway.
        gc.collect()
        gc.freeze()
        if not stop.is_set():
            ready.set()
            IS_SERVING.set(1)
            await _set_health(health, servicer.service_name, SERVING)
            log.info("serving", service=servicer.service_name, port=port)
        await _until_stopped(servicer, health, stop)
        log.info("draining", service=servicer.service_name, seconds=settings.drain_seconds)
        IS_SERVING.set(0)
        await _set_health(health, servicer.service_name, NOT_SERVING)
    finally:
        await server.stop(settings.drain_seconds)
        await probed.stop(0)
        await servicer.close()
    log.info("stopped", service=servicer.service_name)


def _add_port(server: grpc.aio.Server, settings: ServerSettings) -> int:
    address = f"{settings.host}:{settings.port}"
    if settings.tls is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, server_credentials(settings.tls))


async def _serve_health_alone(health: HealthServicer, settings: ServerSettings) -> grpc.aio.Server:
    """A plaintext server of nothing but health: Kubernetes' gRPC probes know no TLS."""
    server = grpc.aio.server(options=server_options(settings))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.health_port:
        server.add_insecure_port(f"{settings.host}:{settings.health_port}")
    await server.start()
    return server


async def _until_loaded(servicer: Servicer, stop: asyncio.Event) -> None:
    """Waits for the load, or for a signal in the middle of it."""
    load = asyncio.ensure_future(servicer.load())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((load, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if load.done():
        load.result()
    else:
        load.cancel()


async def _is_serving(health: HealthServicer) -> bool:
    without_context: Any = None
    response: Any = await health.Check(health_pb2.HealthCheckRequest(), without_context)
    return bool(response.status == SERVING)


async def _until_stopped(servicer: Servicer, health: HealthServicer, stop: asyncio.Event) -> None:
    """Waits; takes the service out of the way while it says of itself that it is not sound."""
    is_sound: Callable[[], bool] = getattr(servicer, "is_sound", lambda: True)
    serving = True
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SOUND_SECONDS):
                await stop.wait()
        if not stop.is_set() and is_sound() != serving:
            serving = not serving
            log.warning("readiness changed", service=servicer.service_name, serving=serving)
            IS_SERVING.set(int(serving))
            await _set_health(health, servicer.service_name, SERVING if serving else NOT_SERVING)


async def _set_health(health: HealthServicer, service: str, status: int) -> None:
    await health.set("", status)
    await health.set(service, status)
