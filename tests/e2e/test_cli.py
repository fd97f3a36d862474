"""The command as a person runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from sfumato_client import Client
from sfumato_client.stack import Stack, free_port

SFUMATO = [str(Path(sys.executable).parent / "sfumato")]


def sfumato(*arguments: object, target: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs the command to its end."""
    environment = {**os.environ, "SFUMATO_TARGET": target, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [*SFUMATO, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_generate_without_a_target_starts_its_own_services_and_leaves_none(
    tiny_family: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "cat.png"
    ran = sfumato(
        "generate", "a cat", "-o", file, "--steps", 3, "--seed", 4, "--family", tiny_family, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (answer["seed"], answer["files"]) == (4, [str(file)])
    assert answer["timings"]["denoise_seconds"] > 0
    assert Image.open(file).size == (64, 64)
    # The services have the family in their environment, not in their arguments.
    environments = (process.info["environ"] or {} for process in psutil.process_iter(["environ"]))
    assert not [own for own in environments if own.get("SFUMATO_DENOISER_FAMILY") == str(tiny_family)]


def test_several_images_are_numbered(stack: Stack, tmp_path: Path) -> None:
    ran = sfumato(
        "generate", "a", "-o", tmp_path / "x.webp", "--num-images", 2, "--steps", 2, target=stack.target
    )
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0.webp", "x-1.webp"]


def test_previews_are_written_into_a_folder(stack: Stack, tmp_path: Path) -> None:
    frames = tmp_path / "new" / "frames"
    ran = sfumato(
        "generate", "a", "-o", tmp_path / "x.png", "--steps", 4, "--frames", frames, "--frame-every", 2,
        target=stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in frames.iterdir()) == ["0-0002.png", "0-0004.png"]
    assert Image.open(frames / "0-0004.png").size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--scheduler", "best"], "dpmpp_2m_karras", 2),
        (["-o", "x.bmp"], ".webp", 2),
        (["--steps", "0"], "num_inference_steps must be 1 to 1000, but is 0", 1),
        (["--width", "65"], "width must be a positive multiple of 8, but is 65", 1),
        (["--image", "nowhere.png"], "nowhere.png", 2),
    ],
)
def test_a_mistake_gets_one_helpful_line(
    stack: Stack, tmp_path: Path, arguments: list[str], said: str, code: int
) -> None:
    ran = sfumato("generate", "a cat", "-o", tmp_path / "x.png", *arguments, target=stack.target)
    assert ran.returncode == code
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_family_is_said_so(tmp_path: Path) -> None:
    ran = sfumato("generate", "a", "-o", tmp_path / "x.png", "--family", tmp_path)
    assert ran.returncode == 1
    assert "model_index.json" in ran.stderr


def test_models_says_what_each_family_can_do(stack: Stack) -> None:
    families = json.loads(sfumato("models", "--json", target=stack.target).stdout)
    assert families[0]["name"] == f"families/{stack.family.name}"
    assert "inpainting" in families[0]["methods"]


def test_serve_prints_one_line_restarts_the_dead_and_drains(tiny_family: Path, tmp_path: Path) -> None:
    port = free_port()
    family = shutil.copytree(tiny_family, tmp_path / "mine", ignore=shutil.ignore_patterns("clip"))
    clip = str(tiny_family / "clip")
    serve = subprocess.Popen(
        [*SFUMATO, "serve", "--family", str(family), "--port", str(port), "--clip", clip],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert serve.stdout is not None
    assert serve.stdout.readline().startswith(f"ready: gateway 127.0.0.1:{port}")
    children = psutil.Process(serve.pid).children()
    assert len(children) == 5
    with Client(f"127.0.0.1:{port}", timeout=60) as client:
        # Encoder and editor have the CLIP that was given.
        assert client.generate("a cat", guidance="clip", num_inference_steps=1).images
        assert "vqgan-clip" in client.list_families()[0].methods
        denoiser = next(child for child in children if "sfumato.denoiser" in child.cmdline())
        denoiser.kill()
        assert generates_again(client)
        events = client.generate_events("a cat", num_inference_steps=25)
        next(event for event in events if event.HasField("step"))
        serve.send_signal(signal.SIGTERM)
        # What runs is finished while the services drain.
        assert any(event.HasField("image") for event in events)
    assert serve.wait(60) == 0
    assert serve.stdout.read() == ""
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize(("name", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_start_of_serve(tiny_family: Path, name: signal.Signals, code: int) -> None:
    command = [*SFUMATO, "serve", "--family", str(tiny_family), "--port", str(free_port())]
    serve = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert serve.stdout is not None
    while len(children := psutil.Process(serve.pid).children()) < 5:
        time.sleep(0.01)
    serve.send_signal(name)
    assert serve.stdout.read() == ""  # it never said that it was ready
    assert serve.wait(40) == code
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def generates_again(client: Client) -> bool:
    """Whether an image comes within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return bool(client.generate("a", num_inference_steps=1).images)
        except Exception:
            time.sleep(0.5)
    return False


def test_the_services_die_with_a_launcher_that_is_killed(tiny_family: Path) -> None:
    command = [*SFUMATO, "serve", "--family", str(tiny_family), "--port", str(free_port())]
    serve = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert serve.stdout is not None
    assert serve.stdout.readline().startswith("ready")
    children = psutil.Process(serve.pid).children()
    serve.kill()
    serve.wait()
    _, alive = psutil.wait_procs(children, timeout=40)
    assert not alive
