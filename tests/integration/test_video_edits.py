"""A video through gateway and editor: taken apart, painted on, edited; killed on the way, and refused."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sfumato_client import Client, SfumatoError
from sfumato_client.edit_requests import artifacts_of
from sfumato_client.stack import Stack
from tests.clips import audio_file, file_without_frames, moving_disc, video_file
from tests.editor_process import editing_stack, kill_and_restart

FRAMES, MASKS = moving_disc(5)
SMALL: dict[str, Any] = {
    "seed": 1, "width": 16, "foreground_layers": 2, "background_layers": 2, "alpha_layers": 2,
    "atlas_layers": 5, "batch_size": 64, "num_pretraining_iterations": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def video_stack(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services with the tiny family, and an editor that takes checkpoints all the time."""
    folder = tmp_path_factory.mktemp("videos")
    with editing_stack(tiny_family, folder, checkpoint_seconds=0.2) as running:
        yield running


@pytest.fixture(scope="module")
def edits(video_stack: Stack) -> Iterator[Client]:
    with Client(video_stack.target, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def atlas(edits: Client) -> str:
    operation = edits.start_edit("layered-atlas", video=video_file(FRAMES), num_iterations=20, **SMALL)
    edits.wait_operation(operation.name)
    return operation.name


def shape_of(mp4: bytes) -> tuple[int, int, int]:
    with av.open(io.BytesIO(mp4)) as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].height, frames[0].width


def test_a_video_is_taken_apart_and_edited_by_its_name(edits: Client, atlas: str) -> None:
    parts = {artifact.name: artifact for artifact in artifacts_of(edits.get_operation(atlas))}
    assert list(parts) == ["video", "alpha", "foreground", "background", "decomposition"]
    assert parts["video"].media_type == "video/mp4"
    assert shape_of(parts["video"].data) == shape_of(parts["alpha"].data) == (5, 32, 48)
    picture = Image.open(io.BytesIO(parts["foreground"].data))
    picture.paste((0, 0, 255), (0, 0, *picture.size))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    painted = edits.edit("atlas-render", decomposition=atlas, image=buffer.getvalue(), layer="foreground")
    assert [artifact.name for artifact in painted] == ["video", "edit_layer"]
    few = {
        "num_iterations": 2,
        "num_views": 2,
        "num_frames": 1,
        "channels": 8,
        "preview_interval_iterations": 1,
    }
    operation = edits.start_edit("text2live-video", decomposition=atlas, prompt="a cat", seed=1, **few)
    events = list(edits.watch_edit(operation.name))
    assert [event.iteration for event in events] == [1, 2]
    assert Image.open(io.BytesIO(events[0].preview)).size == (48, 32)
    edited = artifacts_of(edits.wait_operation(operation.name))
    assert [artifact.name for artifact in edited] == ["video", "edit_layer", "atlas"]
    assert shape_of(edited[0].data) == (5, 32, 48)


def test_previews_show_the_frame_its_reconstruction_alpha_and_both_atlases(edits: Client) -> None:
    asked = {"video": video_file(FRAMES), "num_iterations": 20, "preview_interval_iterations": 5, **SMALL}
    operation = edits.start_edit("layered-atlas", **asked)
    sheets = {event.iteration: event.preview for event in edits.watch_edit(operation.name) if event.preview}
    assert list(sheets) == [5, 10, 15, 20, 25]
    made = {artifact.name: artifact.data for artifact in artifacts_of(edits.wait_operation(operation.name))}
    first, last = (Image.open(io.BytesIO(sheets[iteration])) for iteration in (5, 25))
    frames = [np.asarray(last.crop((left, 0, left + 48, 32))).astype(int) for left in (0, 48, 96)]
    assert np.abs(frames[0] - FRAMES[2]).mean() < 6
    for name, seen in zip(("video", "alpha"), frames[1:], strict=True):
        with av.open(io.BytesIO(made[name])) as container:
            middle = list(container.decode(video=0))[2].to_ndarray(format="rgb24")
        # Green: the colour that 4:2:0 keeps best.
        assert np.abs(seen - middle)[..., 1].mean() < 6
    for name, left in (("foreground", 0), ("background", 96)):
        atlas = Image.open(io.BytesIO(made[name]))
        where = (left, 32, left + 96, 128)
        assert last.crop(where).tobytes() == atlas.tobytes() != first.crop(where).tobytes()


def test_a_variable_frame_rate_is_made_constant(edits: Client) -> None:
    varying = video_file(FRAMES, ticks=[0, 40, 80, 240, 280])
    parts = edits.edit("layered-atlas", video=varying, num_iterations=1, **SMALL)
    assert shape_of(parts[0].data) == (8, 32, 48)
    with av.open(io.BytesIO(parts[0].data)) as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(25, rel=0.01)


def test_a_decomposition_that_is_killed_ends_with_the_same_bits(edits: Client, video_stack: Stack) -> None:
    assert video_stack.editor is not None
    asked = {"video": video_file(FRAMES), "num_iterations": 150, **SMALL}
    whole = edits.edit("layered-atlas", **asked)
    operation = edits.start_edit("layered-atlas", **asked, request_id="killed")
    for event in edits.watch_edit(operation.name):
        if event.iteration >= 60:
            break
    kill_and_restart(video_stack.editor)
    again = artifacts_of(edits.wait_operation(operation.name))
    assert [artifact.name for artifact in again] == [artifact.name for artifact in whole]
    assert [artifact.data for artifact in again] == [artifact.data for artifact in whole]


def test_an_edit_of_a_video_that_is_killed_ends_with_the_same_bits(
    edits: Client, video_stack: Stack, atlas: str
) -> None:
    assert video_stack.editor is not None
    asked = {
        "decomposition": atlas, "prompt": "a cat", "seed": 1, "num_iterations": 40, "num_views": 2,
        "num_frames": 1, "channels": 8,
    }  # fmt: skip
    whole = edits.edit("text2live-video", **asked)
    operation = edits.start_edit("text2live-video", **asked, request_id="killed-edit")
    seen = []
    for event in edits.watch_edit(operation.name):
        seen.append(event.iteration)
        if event.iteration == 20:
            kill_and_restart(video_stack.editor)
    assert seen == list(range(1, 41))
    again = artifacts_of(edits.wait_operation(operation.name))
    assert [artifact.name for artifact in again] == [artifact.name for artifact in whole]
    assert [artifact.data for artifact in again] == [artifact.data for artifact in whole]


@pytest.mark.parametrize(
    ("video", "code", "limit"),
    [
        (b"no video at all", "INVALID_ARGUMENT", "an MP4, WebM or GIF file"),
        (b"", "INVALID_ARGUMENT", "given"),
        (audio_file(), "INVALID_ARGUMENT", "a file with pictures"),
        (file_without_frames(), "INVALID_ARGUMENT", "a file with pictures"),
        (video_file(FRAMES)[:800], "INVALID_ARGUMENT", "whole"),
        (bytes(13 * 2**20), "RESOURCE_EXHAUSTED", "bytes"),
        (video_file(np.zeros((201, 16, 16, 3), np.uint8)), "RESOURCE_EXHAUSTED", "at most 200 frames"),
        (video_file(np.zeros((70, 16, 16, 3), np.uint8), rate=1), "RESOURCE_EXHAUSTED", "60 seconds"),
        (file_without_frames("gif", 8000), "RESOURCE_EXHAUSTED", "at most 1048576 pixels a frame"),
        (video_file(FRAMES[:, :8]), "INVALID_ARGUMENT", "at least 16 pixels a side"),
    ],
    ids=[
        "no video",
        "empty",
        "audio only",
        "no frames",
        "cut off",
        "large file",
        "many frames",
        "long",
        "large frames",
        "small",
    ],
)
def test_a_video_that_cannot_be_is_refused(edits: Client, video: bytes, code: str, limit: str) -> None:
    with pytest.raises(SfumatoError) as error:
        edits.start_edit("layered-atlas", video=video, **SMALL)
    assert (error.value.code, error.value.field) == (code, "video")
    assert limit in error.value.limit


def test_an_edit_of_what_is_no_decomposition_is_refused(edits: Client, atlas: str) -> None:
    with pytest.raises(SfumatoError) as error:
        edits.start_edit("text2live-video", decomposition="operations/none", prompt="a cat")
    assert (error.value.code, error.value.field) == ("NOT_FOUND", "decomposition")
