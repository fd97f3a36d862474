"""Builds and runs the gateway."""

from sfumato.common.server import run
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.servicer import GatewayServicer


def main() -> None:
    """Serves until SIGTERM."""
    run(GatewaySettings(), GatewayServicer)  # type: ignore[call-arg]
