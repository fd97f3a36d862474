"""Clips in memory, read from and written to MP4, WebM and GIF by PyAV (extra `video`).

The kind of a file is told by its first bytes, and only that demuxer is opened: others follow links to files.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from PIL import Image

from sfumato.common.errors import InvalidArgument, ResourceExhausted

KINDS = "an MP4, WebM or GIF file"
DECODER_PIXELS = 4  # for each pixel of a frame: the most that the decoder makes memory for
LEAST_SHARE = 0.9  # of the frames that the header promises; fewer: the file is cut off
MAX_RATE = 240.0  # frames a second
# The same bytes each time: x264's lookahead depends on memory beyond small frames.
MP4 = {"crf": "14", "threads": "1", "x264-params": "rc-lookahead=0:mbtree=0:bframes=0"}


@dataclass(frozen=True)
class Limits:
    """What a clip may have; the editor's settings."""

    max_bytes: int
    max_frames: int
    max_seconds: float
    max_pixels: int  # of a frame
    max_total_pixels: int  # of all frames


@dataclass(frozen=True)
class Video:
    """A clip."""

    frames: np.ndarray  # uint8 [n, h, w, 3]
    frame_rate: float  # frames a second

    @classmethod
    def of_images(cls, images: Sequence[Image.Image], frame_rate: float) -> Self:
        """From RGB pictures of one size."""
        return cls(np.stack([np.asarray(image) for image in images]), frame_rate)

    def fitted(self, most: int) -> "Video":
        """Shrunk where its longest side is above `most`."""
        height, width = self.frames.shape[1:3]
        factor = most / max(height, width)
        if factor >= 1:
            return self
        size = max(2, round(width * factor)), max(2, round(height * factor))
        pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in self.frames]
        return Video.of_images(pictures, self.frame_rate)


def is_video(data: bytes) -> bool:
    """Whether the first bytes are those of MP4, WebM (Matroska) or GIF."""
    return bool(_kind(data))


def decode(data: bytes, field: str, limits: Limits) -> Video:
    """A clip of constant frame rate: where the file's varies, frames are repeated or dropped.

    Raises:
        InvalidArgument: no such file, one without pictures, damaged, cut off, or its size changes.
        ResourceExhausted: beyond a limit, which is seen from the header or while decoding.
    """
    import av

    if len(data) > limits.max_bytes:
        raise ResourceExhausted(field, f"at most {limits.max_bytes} bytes", f"{len(data)} bytes")
    kind = _kind(data)
    if not kind:
        raise InvalidArgument(field, KINDS, f"{len(data)} bytes of something else" if data else "empty")
    try:
        with av.open(io.BytesIO(data), format=kind) as container:
            if not container.streams.video:
                others = len(container.streams)
                raise InvalidArgument(
                    field, "a file with pictures", f"{others} other streams" if others else "without any"
                )
            stream = container.streams.video[0]
            promised = _check_header(container, stream, field, limits)
            # A stream may grow behind its header. The decoder counts sides that are padded, to 64 pixels.
            stream.codec_context.options = {"max_pixels": str(DECODER_PIXELS * limits.max_pixels)}
            frames = list(_frames(container, stream, field, limits))
            average = float(stream.average_rate or 0)
    except av.error.FFmpegError as error:
        raise InvalidArgument(field, f"{KINDS} that is whole", f"{len(data)} bytes: {error}") from error
    if not frames:
        raise InvalidArgument(field, "a file with pictures", "without any")
    if len(frames) < LEAST_SHARE * promised:
        raise InvalidArgument(field, f"whole: {promised} frames", f"cut off after {len(frames)}")
    return _at_constant_rate(frames, average, field, limits)


def _kind(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "gif" if data[:6] in (b"GIF87a", b"GIF89a") else ""


def _check_header(container: Any, stream: Any, field: str, limits: Limits) -> int:
    """Refuses what the header says is too much; returns the frames that it promises, 0 for unknown."""
    width, height = stream.codec_context.width, stream.codec_context.height
    _check_size(width, height, field, limits)
    _check_count(stream.frames, width, height, field, limits)
    if container.duration and container.duration / 1e6 > limits.max_seconds:
        seconds = f"{container.duration / 1e6:.1f} seconds"
        raise ResourceExhausted(field, f"at most {limits.max_seconds:g} seconds", seconds)
    return int(stream.frames)


def _check_size(width: int, height: int, field: str, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise ResourceExhausted(field, f"at most {limits.max_pixels} pixels a frame", f"{width}x{height}")


def _check_count(count: int, width: int, height: int, field: str, limits: Limits) -> None:
    if count > limits.max_frames:
        advice = "Cut it, such as by ffmpeg -frames:v."
        raise ResourceExhausted(field, f"at most {limits.max_frames} frames", count, advice)
    if count * width * height > limits.max_total_pixels:
        total = f"{count} frames of {width}x{height}"
        raise ResourceExhausted(field, f"at most {limits.max_total_pixels} pixels in all", total)


def _frames(
    container: Any, stream: Any, field: str, limits: Limits
) -> Iterator[tuple[float | None, np.ndarray]]:
    """Time in seconds and pixels of each frame; limits hold while it goes, whatever the header said."""
    size = None
    for count, frame in enumerate(container.decode(stream), 1):
        _check_size(frame.width, frame.height, field, limits)
        _check_count(count, frame.width, frame.height, field, limits)
        if frame.time is not None and frame.time > limits.max_seconds:
            limit = f"at most {limits.max_seconds:g} seconds"
            raise ResourceExhausted(field, limit, f"a frame at {frame.time:.1f} seconds")
        size = size or (frame.width, frame.height)
        if size != (frame.width, frame.height):
            changed = f"{frame.width}x{frame.height} in frame {count}"
            raise InvalidArgument(field, f"of one size, {size[0]}x{size[1]}", changed)
        yield frame.time, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _at_constant_rate(
    frames: list[tuple[float | None, np.ndarray]], average: float, field: str, limits: Limits
) -> Video:
    """Each moment of a regular clock shows the last frame that began by then."""
    pictures = [picture for _, picture in frames]
    times = np.array([time for time, _ in frames if time is not None])
    steps = np.diff(times)
    if len(times) < len(frames) or len(times) < 2 or (steps <= 0).any():
        return Video(np.stack(pictures), min(MAX_RATE, average or 25.0))
    rate = min(MAX_RATE, 1 / float(np.median(steps)))
    if np.allclose(steps, 1 / rate, atol=0.25 / rate):  # clocks are rounded, to 1/100 s in a GIF
        return Video(np.stack(pictures), min(MAX_RATE, average or rate))
    count = round((times[-1] - times[0]) * rate) + 1
    _check_count(count, pictures[0].shape[1], pictures[0].shape[0], field, limits)
    clock = times[0] + np.arange(count) / rate + 0.25 / rate
    shown = np.searchsorted(times, clock, side="right") - 1
    return Video(np.stack([pictures[index] for index in shown]), rate)


def encode_mp4(video: Video) -> bytes:
    """H.264 in 4:2:0, which every player shows; an odd side gets its last row or column once more."""
    import av

    height, width = video.frames.shape[1:3]
    even = np.pad(video.frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(video.frame_rate).limit_denominator(1001)
        stream: Any = container.add_stream("libx264", rate=rate, options=MP4)
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for pixels in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
