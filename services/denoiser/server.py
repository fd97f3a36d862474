"""Builds and runs the denoiser."""

from sfumato.common.server import run
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.servicer import DenoiserServicer


def main() -> None:
    """Serves until SIGTERM."""
    run(DenoiserSettings(), DenoiserServicer)  # type: ignore[call-arg]
