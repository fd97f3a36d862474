"""Films: previews of an edit as an animated GIF or an MP4, and edited videos as MP4, WebM or GIF."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato_client.files import write_file

SUFFIXES = (".mp4", ".gif")
CLIP_SUFFIXES = (".mp4", ".webm", ".gif")
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
    buffer = io.BytesIO()
    shown = [*pictures, *pictures[-1:] * FRAMES_PER_SECOND]
    if path.suffix.lower() == ".gif":
        shown[0].save(
            buffer, "GIF", save_all=True, append_images=shown[1:], duration=1000 // FRAMES_PER_SECOND, loop=0
        )
    else:
        _write_mp4(buffer, shown)
    return write_file(path, buffer.getvalue())


def _write_mp4(file: io.BytesIO, pictures: Sequence[Image.Image]) -> None:
    import av

    # H.264 in 4:2:0, which every player shows, takes even sides only.
    width, height = (max(2, side - side % 2) for side in pictures[0].size)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            cropped = picture.crop((0, 0, width, height))
            frame = av.VideoFrame.from_image(cropped)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def check_clip(path: Path) -> None:
    """
    Raises:
        ValueError: neither .mp4, .webm nor .gif, or one of the latter where PyAV is not installed.
    """
    if path.suffix.lower() not in CLIP_SUFFIXES:
        raise ValueError(f"the video must end in one of {', '.join(CLIP_SUFFIXES)}, but is {path.name}")
    if path.suffix.lower() != ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ValueError("a .webm or .gif needs PyAV: `pip install av`; or name an .mp4") from error


def write_clip(path: Path, mp4: bytes) -> Path:
    """Writes a video that came as MP4 in the kind that the path names, VP9 in a .webm."""
    if path.suffix.lower() == ".mp4":
        return write_file(path, mp4)
    import av

    with av.open(io.BytesIO(mp4), "r") as source:
        rate = source.streams.video[0].average_rate or FRAMES_PER_SECOND
        pictures = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in source.decode(video=0)]
    buffer = io.BytesIO()
    if path.suffix.lower() == ".gif":
        milliseconds = round(1000 / rate)
        pictures[0].save(
            buffer, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0
        )
    else:
        with av.open(buffer, "w", format="webm") as target:
            options = {"crf": "16", "b": "0"}
            stream: Any = target.add_stream("libvpx-vp9", rate=rate, options=options)
            stream.width, stream.height = pictures[0].size
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                target.mux(stream.encode(av.VideoFrame.from_image(picture)))  # type: ignore[no-untyped-call]
            target.mux(stream.encode())
    return write_file(path, buffer.getvalue())
