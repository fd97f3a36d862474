"""Builds and runs the encoder."""

from sfumato.common.server import run
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.servicer import EncoderServicer


def main() -> None:
    """Serves until SIGTERM."""
    run(EncoderSettings(), EncoderServicer)  # type: ignore[call-arg]
