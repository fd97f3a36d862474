"""`sfumato health`: what a service's health check says, as an exit code. Containers' health checks run it."""

from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sfumato_client.messages import fail


def health(
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The service; its health port.")],
    service: Annotated[
        str, typer.Option(help="sfumato.v1.DenoiserService ... or liveness. Default: the whole server.")
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 5.0,
) -> None:
    """Ask a service whether it serves (grpc.health.v1): exit code 0 if so, else 1 and the reason.

    Examples:

      sfumato health 127.0.0.1:50061

      sfumato health 127.0.0.1:50061 --service liveness
    """
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(request, timeout=timeout)
        except grpc.RpcError as error:
            fail(f"{target}: {error.code().name.lower().replace('_', ' ')}: {error.details()}")
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    if status != "SERVING":
        fail(f"{target} says {status}")
    print(status)
