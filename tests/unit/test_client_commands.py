"""What the commands say where something is wrong, without any gateway."""

import io
import os
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sfumato_protos.v1 import gateway_pb2
from typer.testing import CliRunner

from sfumato_client.cli import app
from sfumato_client.files import write_file
from sfumato_client.film import write_video
from sfumato_client.rejoin import Rejoin

NOBODY = ("--target", "127.0.0.1:1")


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file where a folder is wanted."""
    (tmp_path / "taken").write_bytes(b"mine")
    return tmp_path / "taken"


def said(*arguments: object) -> str:
    """One readable line of a command that fails."""
    ran = CliRunner().invoke(app, [*map(str, arguments), *NOBODY])
    assert ran.exit_code == 1
    assert isinstance(ran.exception, SystemExit), ran.exception
    return ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a", "-o", "{}/x.png"),
        ("generate", "a", "-o", "x.png", "--manifest", "{}/x.json"),
        ("generate", "a", "-o", "x.png", "--frames", "{}"),
        ("compare", "a", "-o", "{}/x.png"),
        ("attention", "a", "-o", "{}/x.png"),
        ("edit-prompt", "a", "--to", "b", "-o", "{}/x.png"),
        ("edit", "vqgan-clip", "--prompt", "a", "-o", "{}/x.png"),
        ("edit", "vqgan-clip", "--prompt", "a", "-o", "x.png", "--film", "{}/x.gif"),
        ("atlas", "{}", "-o", "{}"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_any_work(
    taken: Path, arguments: tuple[str, ...]
) -> None:
    message = said(*(argument.format(taken) for argument in arguments))
    assert str(taken) in message
    assert "unavailable" not in message  # nobody was asked
    assert list(taken.parent.iterdir()) == [taken]


@pytest.mark.parametrize("text", ["[/red]", "[bold]", ":cat:"])
def test_what_looks_like_markup_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / text / "manifest.json"
    file.parent.mkdir(parents=True)
    file.touch()
    assert str(file) in said("replay", file)


IMAGE = '{"index": 0, "seed": 1, "partial": false, "num_steps": 1, "latents": [], "sha256": ""}'


@pytest.mark.parametrize(
    ("request_", "weights", "images"),
    [("{}", "{}", "[]"), ("{}", "{}", "[1]"), ("{}", "{}", '[{"index": 0}]'), ("{}", "3", f"[{IMAGE}]"),
     ("3", "{}", f"[{IMAGE}]")],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_before_it_is_run(
    tmp_path: Path, request_: str, weights: str, images: str
) -> None:
    file = tmp_path / "manifest.json"
    parts = f'"request": {request_}, "weights": {weights}, "versions": {{}}, "images": {images}'
    file.write_text(f'{{"sfumato_manifest": 1, {parts}}}')
    assert "is no manifest" in said("replay", file)
    file.write_text(f'{{"sfumato_manifest": 1, "request": {{}}, "weights": {{}}, "versions": {{}}, '
                    f'"images": [{IMAGE}]}}')  # fmt: skip
    assert "unavailable" in said("replay", file)


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(tmp_path: Path, seconds: str) -> None:
    message = said("generate", "a", "-o", tmp_path / "x.png", "--timeout", seconds)
    assert "timeout must be above 0 and finite" in message


def test_a_number_out_of_range_is_named(tmp_path: Path) -> None:
    assert "num_inference_steps: " in said("generate", "a", "-o", tmp_path / "x.png", "--steps", 10**11)
    assert "num_iterations: " in said(
        "edit", "vqgan-clip", "--prompt", "a", "-o", tmp_path / "x.png", "--iterations", 10**11
    )


def test_a_film_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    pictures = []
    for seed in range(4):
        buffer = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    for name in ("film.gif", "film.mp4"):
        (tmp_path / name).write_bytes(b"old")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                write_video(tmp_path / name, pictures)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / name).read_bytes() == b"old"
        assert len(write_video(tmp_path / name, pictures).read_bytes()) > 1000
    assert len(list(tmp_path.iterdir())) == 2


def test_a_request_that_was_read_can_be_sent_again() -> None:
    """Where a stream goes on is not written into the caller's message."""
    request = gateway_pb2.GenerateRequest(prompt="a", request_id="mine")
    rejoin = Rejoin(request, 60)
    rejoin.saw(gateway_pb2.GenerateResponse(event_index=4))
    assert (rejoin.sent.resume_from, request.resume_from) == (5, 0)


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        file = write_file(tmp_path / "x.png", b"image")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [file]
