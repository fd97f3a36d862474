"""Clips in and out: what comes back is what went in, and what cannot be is refused with its limit."""

import dataclasses

import numpy as np
import pytest

from sfumato.common.errors import InvalidArgument, ResourceExhausted
from sfumato.editor.video import Limits, Video, decode, encode_mp4
from tests.clips import audio_file, file_without_frames, growing_file, moving_disc, video_file

LIMITS = Limits(
    max_bytes=10**6, max_frames=20, max_seconds=10.0, max_pixels=64 * 64, max_total_pixels=20 * 64 * 64
)


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_a_clip_comes_out_of_every_kind_of_file(kind: str) -> None:
    frames, _ = moving_disc()
    video = decode(video_file(frames, kind), "video", LIMITS)
    assert video.frames.shape == frames.shape
    assert video.frame_rate == pytest.approx(25, rel=0.01)
    # A GIF's colours are coarse.
    assert np.abs(video.frames.astype(int) - frames).mean() < (25 if kind == "gif" else 6)


def test_what_is_written_can_be_read_and_is_the_same_each_time() -> None:
    frames, _ = moving_disc(5, 33, 31)
    data = encode_mp4(Video(frames, 30000 / 1001))
    assert data == encode_mp4(Video(frames, 30000 / 1001))
    video = decode(data, "video", LIMITS)
    assert video.frame_rate == pytest.approx(29.97, rel=1e-3)
    assert video.frames.shape == (5, 32, 34, 3)
    assert np.abs(video.frames[:, :31, :33].astype(int) - frames).mean() < 6


def test_a_variable_frame_rate_becomes_a_constant_one() -> None:
    frames, _ = moving_disc(6)
    video = decode(video_file(frames, "mp4", ticks=[0, 40, 80, 240, 280, 320]), "video", LIMITS)
    assert video.frame_rate == pytest.approx(25, rel=0.01)
    shown = [int(np.abs(frames.astype(int) - frame).mean((1, 2, 3)).argmin()) for frame in video.frames]
    assert shown == [0, 1, 2, 2, 2, 2, 3, 4, 5]


def damaged() -> bytes:
    data = bytearray(video_file(moving_disc()[0]))
    data[40 : len(data) // 2] = bytes(len(data) // 2 - 40)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an MP4, WebM or GIF file, but is empty"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd", "something else"),
        (audio_file(), "a file with pictures, but is 1 other streams"),
        (video_file(moving_disc()[0])[:900], "whole"),
        (damaged(), "whole"),
        (b"\x1aE\xdf\xa3" + bytes(200), "whole"),
        (file_without_frames("mp4"), "a file with pictures, but is without any"),
        (file_without_frames("gif"), "a file with pictures, but is without any"),
    ],
    ids=["empty", "playlist", "audio only", "cut off", "damaged", "header alone", "no frames", "bare GIF"],
)
def test_a_file_without_a_clip_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as error:
        decode(data, "video", LIMITS)
    assert error.value.field == "video"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_bytes": 100}, "at most 100 bytes"),
        ({"max_frames": 7}, "at most 7 frames, but is 8"),
        ({"max_seconds": 0.2}, "at most 0.2 seconds"),
        ({"max_pixels": 1000}, "at most 1000 pixels a frame, but is 48x32"),
        ({"max_total_pixels": 10_000}, "at most 10000 pixels in all"),
    ],
)
@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_each_limit_is_named(kind: str, limit: dict[str, float], said: str) -> None:
    with pytest.raises(ResourceExhausted, match=said.split(",")[0]) as error:
        decode(video_file(moving_disc()[0], kind), "video", dataclasses.replace(LIMITS, **limit))
    assert error.value.field == "video"


def test_a_stream_that_grows_behind_its_header_is_refused_before_memory_is_made_for_it() -> None:
    data = growing_file((48, 32), (512, 512))
    with pytest.raises(InvalidArgument, match="whole"):  # the decoder's word; a whole frame's would be limits
        decode(data, "video", LIMITS)


def test_a_long_file_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("sfumato.editor.video._frames", never)
    data = video_file(np.concatenate([moving_disc()[0]] * 3))
    with pytest.raises(ResourceExhausted, match="at most 20 frames, but is 24"):
        decode(data, "video", LIMITS)
