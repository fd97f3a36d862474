"""`sfumato atlas`, `sfumato paint` and `sfumato edit text2live --video` as a person runs them."""

import json
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image

from sfumato_client.stack import Stack
from tests.clips import moving_disc, video_file
from tests.e2e.test_cli import sfumato
from tests.editor_process import editing_stack

FEW = [
    "--iterations", 10, "--set", "width=16", "--set", "batch_size=64",
    "--set", "num_pretraining_iterations=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def edit_stack(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("video-cli")
    with editing_stack(tiny_family, folder) as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "disc.mp4"
    path.write_bytes(video_file(moving_disc(5)[0]))
    return path


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_is_taken_apart_painted_on_and_edited(edit_stack: Stack, clip: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "disc", edit_stack.target
    ran = sfumato("atlas", clip, "-o", folder, *FEW, "--json", target=target)
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    names = {"atlas.json", "video.mp4", "alpha.mp4", "foreground.png", "background.png"}
    assert {Path(file).name for file in made["files"]} == names
    again = sfumato("atlas", clip, "-o", folder, *FEW, "--json", target=target)
    assert json.loads(again.stdout)["operation"] == made["operation"]

    painted = Image.open(folder / "foreground.png")
    painted.paste((0, 0, 255), (0, 0, *painted.size))
    painted.save(tmp_path / "blue.png")
    out = tmp_path / "blue.webm"
    ran = sfumato("paint", folder, tmp_path / "blue.png", "-o", out, target=target)
    assert ran.returncode == 0, ran.stderr
    assert count_frames(out) == 5
    assert (tmp_path / "blue-edit_layer.png").exists()

    words = ["--detach", "--request-id", "later", "-o", out]
    assert sfumato("paint", folder, tmp_path / "blue.png", *words, target=target).returncode == 0
    ran = sfumato("operations", "wait", "later", "-o", tmp_path / "later.png", target=target)
    assert "must end in one of .mp4" in ran.stderr
    ran = sfumato("operations", "wait", "later", "-o", tmp_path / "later.mp4", target=target)
    assert ran.returncode == 0, ran.stderr
    assert count_frames(tmp_path / "later.mp4") == 5

    out = tmp_path / "cat.gif"
    edit = ["--iterations", 2, "--set", "num_views=2", "--set", "num_frames=1", "--set", "channels=8"]
    ran = sfumato(
        "edit", "text2live", "--atlas", folder, "--prompt", "a cat", "--layer", "background", "-o", out,
        *edit, target=target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert count_frames(out) >= 5
    assert {path.name for path in tmp_path.glob("cat*")} == {"cat.gif", "cat-edit_layer.png", "cat-atlas.png"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "x.mp4"], "give --image, or --video"),
        (["--atlas", "operations/x", "-o", "x.png"], "must end in one of .mp4"),
        (["--atlas", "operations/x", "-o", "x.mp4"], "operations/x has no result"),
        (["--atlas", ".", "-o", "x.mp4"], "was not written by"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(edit_stack: Stack, arguments: list[str], said: str) -> None:
    ran = sfumato("edit", "text2live", "--prompt", "a cat", *arguments, target=edit_stack.target)
    assert ran.returncode == 1
    assert said in ran.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"no video", "video must be an MP4, WebM or GIF file"), (b"", "video must be given")],
    ids=["no video", "empty"],
)
def test_a_file_that_is_no_video_is_refused(
    edit_stack: Stack, tmp_path: Path, data: bytes, said: str
) -> None:
    path = tmp_path / "song.mp4"
    path.write_bytes(data)
    ran = sfumato("atlas", path, "-o", tmp_path / "x", "--quick", target=edit_stack.target)
    assert ran.returncode == 1
    assert said in ran.stderr


def test_help_teaches_with_examples(edit_stack: Stack) -> None:
    for command in (["atlas"], ["paint"], ["edit", "text2live"]):
        ran = sfumato(*command, "--help", target=edit_stack.target)
        assert "Example" in ran.stdout
