"""Previews of an edit as a film: a folder of pictures, an animated GIF, or an MP4."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SUFFIXES = (".mp4", ".gif")
FRAMES_PER_SECOND = 12


def check_video(path: Path) -> None:
    """
    Raises:
        ValueError: neither .mp4 nor .gif, or an .mp4 where PyAV is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the film must end in one of {', '.join(SUFFIXES)}, but is {path.name}")
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ValueError("an .mp4 needs PyAV: `pip install av`; or name a .gif") from error


def write_video(path: Path, frames: Sequence[bytes]) -> Path:
    """Writes encoded pictures of one size as a film; the last is held for a second."""
    pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [*pictures, *pictures[-1:] * FRAMES_PER_SECOND]
    if path.suffix.lower() == ".gif":
        shown[0].save(
            path, save_all=True, append_images=shown[1:], duration=1000 // FRAMES_PER_SECOND, loop=0
        )
    else:
        _write_mp4(path, shown)
    return path


def _write_mp4(path: Path, pictures: Sequence[Image.Image]) -> None:
    import av

    # H.264 in 4:2:0, which every player shows, takes even sides only.
    width, height = (max(2, side - side % 2) for side in pictures[0].size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            cropped = picture.crop((0, 0, width, height))
            frame = av.VideoFrame.from_image(cropped)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
