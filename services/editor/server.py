"""Builds and runs the editor."""

from sfumato.common.server import run
from sfumato.editor.config import EditorSettings
from sfumato.editor.servicer import EditorServicer


def main() -> None:
    """Serves until SIGTERM."""
    run(EditorSettings(), EditorServicer)  # type: ignore[call-arg]
