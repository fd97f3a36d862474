"""Small clips for tests: a bright disc that crosses a pattern, as files of every kind, and damaged ones."""

import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np


def moving_disc(num_frames: int = 8, width: int = 48, height: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [n, h, w, 3] and the disc's mask bool [n, h, w]."""
    y, x = np.mgrid[:height, :width]
    pattern = 70 + 25 * np.sin(x / 3) + 25 * np.cos(y / 4)
    background = np.stack([pattern, pattern[:, ::-1], 160 - pattern], -1)
    middles = np.linspace(0.2, 0.8, num_frames) * width
    masks = np.stack([(x - middle) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2 for middle in middles])
    shade = np.stack([240 - 9 * abs(x - middle) - 6 * abs(y - height / 2) for middle in middles])
    disc = np.stack([shade, 0.6 * shade, np.full(shade.shape, 30)], -1)
    return np.where(masks[..., None], disc, background).round().astype(np.uint8), masks


def video_file(
    frames: np.ndarray, kind: str = "mp4", rate: float = 25.0, ticks: list[int] | None = None
) -> bytes:
    """The frames as mp4 (H.264), webm (VP9) or gif; ticks: each frame's time in 1/1000 s."""
    codec, pixels = {
        "mp4": ("libx264", "yuv420p"),
        "webm": ("libvpx-vp9", "yuv420p"),
        "gif": ("gif", "rgb8"),
    }[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        quality = {"mp4": {"crf": "8"}, "webm": {"crf": "8", "b": "0", "deadline": "realtime"}, "gif": {}}[
            kind
        ]
        stream: Any = container.add_stream(
            codec, rate=Fraction(rate).limit_denominator(1001), options=quality
        )
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if ticks is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def growing_file(first: tuple[int, int], then: tuple[int, int]) -> bytes:
    """A webm of two black frames of one (width, height), which the header names, and one of another."""
    buffer, rate = io.BytesIO(), Fraction(25)
    small, large = (
        av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        for width, height in (first, then)
    )
    with av.open(buffer, "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *first, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(small))
        container.mux(stream.encode())
        other: Any = av.CodecContext.create("libvpx-vp9", "w")
        other.width, other.height, other.pix_fmt = *then, "yuv420p"
        other.time_base, other.framerate, other.options = 1 / rate, rate, {"deadline": "realtime"}
        for packet in [*other.encode(large), *other.encode()]:
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = 2
            container.mux(packet)
    return buffer.getvalue()


def file_without_frames(kind: str = "mp4", side: int = 32) -> bytes:
    """A header of a square picture, and the end: mp4 or gif."""
    if kind == "gif":
        return b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b";"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        container.start_encoding()
    return buffer.getvalue()


def audio_file() -> bytes:
    """An MP4 with sound and no pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
