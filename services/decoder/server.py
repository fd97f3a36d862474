"""Builds and runs the decoder."""

from sfumato.common.server import run
from sfumato.decoder.config import DecoderSettings
from sfumato.decoder.servicer import DecoderServicer


def main() -> None:
    """Serves until SIGTERM."""
    run(DecoderSettings(), DecoderServicer)  # type: ignore[call-arg]
