"""Builds and runs the denoiser."""

from sfumato.common.server import run
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.servicer import DenoiserServicer


def main() -> None:
    """Serves until SIGTERM."""
    settings = DenoiserSettings()  # type: ignore[call-arg]
    run(settings, DenoiserServicer(settings))
