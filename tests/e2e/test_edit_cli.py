"""`sfumato edit` and `sfumato operations` as a person runs them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image

from sfumato_client.stack import Stack
from tests.e2e.test_cli import sfumato
from tests.editor_process import editing_stack, noisy_image

SMALL = ["--iterations", 12, "--set", "channels=8", "--set", "num_scales=2", "--seed", 3]


@pytest.fixture(scope="module")
def edit_stack(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("edit-cli")
    with editing_stack(tiny_family, folder) as running:
        yield running


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    path = tmp_path / "noisy.png"
    path.write_bytes(noisy_image())
    return path


def restore(stack: Stack, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return sfumato("edit", "deep-image-prior", *arguments, *SMALL, target=stack.target)


def test_an_edit_writes_the_image_its_frames_and_a_film(
    edit_stack: Stack, noisy: Path, tmp_path: Path
) -> None:
    out, frames, film = tmp_path / "new" / "clean.webp", tmp_path / "frames", tmp_path / "film.mp4"
    ran = restore(
        edit_stack,
        "--image",
        noisy,
        "-o",
        out,
        "--frames",
        frames,
        "--film",
        film,
        "--frame-every",
        4,
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (answer["state"], answer["seed"], answer["iteration"]) == ("succeeded", 3, 12)
    assert answer["files"] == [str(out), str(film)]
    assert set(answer["losses"]) == {"total", "reconstruction"}
    assert Image.open(out).size == (32, 32)
    assert sorted(path.name for path in frames.iterdir()) == ["000004.png", "000008.png", "000012.png"]
    with av.open(str(film)) as container:
        shown = list(container.decode(video=0))
    assert len(shown) == 3 + 12
    assert (shown[0].width, shown[0].height) == (32, 32)


def test_a_film_can_be_a_gif(edit_stack: Stack, noisy: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    ran = restore(edit_stack, "--image", noisy, "-o", tmp_path / "x.png", "--film", film, "--frame-every", 6)
    assert ran.returncode == 0, ran.stderr
    assert Image.open(film).n_frames >= 2  # type: ignore[attr-defined]


def test_a_detached_edit_is_waited_for_and_deleted(edit_stack: Stack, noisy: Path, tmp_path: Path) -> None:
    arguments = ["--image", noisy, "-o", tmp_path / "x.png"]
    ran = restore(edit_stack, *arguments, "--detach", "--request-id", "mine")
    assert (ran.returncode, ran.stdout.strip()) == (0, "operations/mine"), ran.stderr
    assert not (tmp_path / "x.png").exists()
    again = restore(edit_stack, *arguments, "--detach", "--request-id", "mine", "--json")
    assert json.loads(again.stdout)["operation"] == "operations/mine"

    def operations(*words: object) -> "subprocess.CompletedProcess[str]":
        return sfumato("operations", *words, target=edit_stack.target)

    waited = operations("wait", "mine", "-o", tmp_path / "y.png", "--json")
    assert waited.returncode == 0, waited.stderr
    assert json.loads(waited.stdout)["files"] == [str(tmp_path / "y.png")]
    foreground = restore(edit_stack, *arguments)
    assert foreground.returncode == 0, foreground.stderr
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()
    listed = json.loads(operations("list", "--json").stdout)
    assert "operations/mine" in [entry["operation"] for entry in listed]
    assert "mine" in operations("list").stdout
    assert "succeeded" in operations("get", "operations/mine").stderr
    assert operations("delete", "mine").returncode == 0
    gone = operations("get", "mine")
    assert gone.returncode == 1
    assert "there is no operations/mine" in gone.stderr


def test_a_cancelled_edit_fails_the_wait(edit_stack: Stack, noisy: Path, tmp_path: Path) -> None:
    ran = sfumato(
        "edit", "deep-image-prior", "--image", noisy, "-o", tmp_path / "x.png", "--iterations", 20_000,
        "--detach", "--request-id", "long", target=edit_stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert sfumato("operations", "cancel", "long", target=edit_stack.target).returncode == 0
    waited = sfumato("operations", "wait", "long", target=edit_stack.target)
    assert waited.returncode == 1
    assert "cancelled" in waited.stderr


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["-o", "x.bmp", "--prompt", "a"], "must end in one of .png", 1),
        (["-o", "x.png"], "prompts must be given where there is no image", 1),
        (["-o", "x.png", "--prompt", "a", "--set", "nothing=1"], "has no option nothing; it has prompts", 1),
        (["-o", "x.png", "--prompt", "a", "--set", "distance=far"], "spherical, cosine", 1),
        (["-o", "x.png", "--prompt", "a", "--iterations", "0"], "num_iterations must be 1 to 20000", 1),
        (["-o", "x.png", "--prompt", "a", "--film", "x.avi"], "must end in one of .mp4, .gif", 1),
        (["-o", "x.png", "--image", "nowhere.png"], "nowhere.png", 2),
    ],
)
def test_a_mistake_gets_one_helpful_line(
    edit_stack: Stack, arguments: list[str], said: str, code: int
) -> None:
    ran = sfumato("edit", "deep-image-prior", *arguments, target=edit_stack.target)
    assert ran.returncode == code
    assert said in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


def test_detaching_needs_a_gateway_that_stays(noisy: Path, tmp_path: Path) -> None:
    ran = sfumato("edit", "deep-image-prior", "--image", noisy, "-o", tmp_path / "x.png", "--detach")
    assert ran.returncode == 1
    assert "sfumato serve" in ran.stderr


def test_prompts_may_have_weights() -> None:
    from sfumato_client.edit_requests import to_prompt

    assert (to_prompt("a cat").text, to_prompt("a cat").HasField("weight")) == ("a cat", False)
    assert (to_prompt("blurry:-0.5").text, to_prompt("blurry:-0.5").weight) == ("blurry", -0.5)
    assert to_prompt("at 12:30 h").text == "at 12:30 h"
    assert to_prompt(("a: b", 2.0)).text == "a: b"


def test_the_film_needs_pyav_only_as_mp4(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sfumato_client.film import check_video

    monkeypatch.setitem(sys.modules, "av", None)
    check_video(Path("x.gif"))
    with pytest.raises(ValueError, match="pip install av"):
        check_video(Path("x.mp4"))
