"""Builds and runs the gateway."""

from sfumato.common.server import run
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.servicer import GatewayServicer


def main() -> None:
    """Serves until SIGTERM."""
    settings = GatewaySettings()  # type: ignore[call-arg]
    run(settings, GatewayServicer(settings))
