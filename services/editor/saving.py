"""What a run leaves in the artifact store: checkpoints, previews, the result."""

from pathlib import Path

import safetensors.torch
from PIL import Image

from sfumato.editor.artifacts import ArtifactStore, checkpoint_path, frame_path, result_path
from sfumato.editor.edits import Edit, encode_png
from sfumato.editor.method import State, Tensors
from sfumato.editor.video import Video, encode_mp4

KEPT_PREVIEWS = 500  # the newest; an edit may have 400,000


def save_checkpoint(store: ArtifactStore, operation: str, state: State, before: int) -> None:
    """Writes the state, and only then forgets the checkpoints before the one behind iteration `before`."""
    store.write_tensors(checkpoint_path(operation, state.iteration), state.tensors())
    for name in store.names(f"{operation}/checkpoints"):
        if int(Path(name).stem) < before:
            store.delete(f"{operation}/checkpoints/{name}")


def save_preview(store: ArtifactStore, edit: Edit, iteration: int, png: bytes) -> None:
    """Writes the preview of an iteration, and forgets the one KEPT_PREVIEWS before it."""
    store.write(frame_path(edit.id, iteration), png)
    oldest = iteration - KEPT_PREVIEWS * edit.preview_interval
    if oldest > 0:
        store.delete(frame_path(edit.id, oldest))


def save_result(store: ArtifactStore, operation: str, state: State) -> list[tuple[str, int]]:
    """Writes all parts of the result; returns the files' names and sizes."""
    return [_save_part(store, operation, name, made) for name, made in state.result().items()]


def _save_part(
    store: ArtifactStore, operation: str, name: str, made: Image.Image | Video | Tensors
) -> tuple[str, int]:
    if isinstance(made, Video):
        file, data = f"{name}.mp4", encode_mp4(made)
    elif isinstance(made, Image.Image):
        file, data = f"{name}.png", encode_png(made)
    else:
        file, data = f"{name}.safetensors", safetensors.torch.save(made)
    store.write(result_path(operation, file), data)
    return file, len(data)
