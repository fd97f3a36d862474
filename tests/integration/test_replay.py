"""A generation run again from its manifest, and where it first differs."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from sfumato_client import Client
from sfumato_client.cli import app
from sfumato_client.manifest import compare
from sfumato_client.stack import Stack, local_stack


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def recorded(tiny_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of an image made from an image, without a seed."""
    folder = tmp_path_factory.mktemp("manifest")
    Image.effect_noise((64, 64), 60).save(folder / "noise.png")
    manifest = folder / "cat.json"
    done = run(
        "generate", "a cat", "-o", str(folder / "cat.png"), "--image", str(folder / "noise.png"),
        "--steps", "8", "--num-images", "2", "--scheduler", "euler_a", "--manifest", str(manifest),
        "--target", tiny_stack.target,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return manifest


def test_a_manifest_says_weights_versions_and_each_step(recorded: Path) -> None:
    manifest = json.loads(recorded.read_text())
    assert {len(digest) for digest in manifest["weights"].values()} == {64}
    assert set(manifest["weights"]) == {"encoder", "denoiser", "decoder"}
    assert manifest["versions"]["denoiser"].startswith("torch ")
    for image in manifest["images"]:
        assert len(set(image["latents"])) == image["num_steps"] == 6


def test_the_same_services_give_the_same_step_for_step(recorded: Path, tiny_stack: Stack) -> None:
    done = run("replay", str(recorded), "--target", tiny_stack.target, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same"]


def test_a_step_that_differs_is_named(recorded: Path, tiny_stack: Stack, tmp_path: Path) -> None:
    manifest = json.loads(recorded.read_text())
    manifest["images"][1]["latents"][3] = "00" * 16
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(manifest))
    done = run("replay", str(changed), "--target", tiny_stack.target, "--json")
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert found["first_step"] == 4
    assert found["images"] == ["image 1 differs first at step 4 of 6"]


def test_other_weights_are_said_to_be_the_reason(recorded: Path, tmp_path: Path) -> None:
    """A family of the same shape, whose UNet has other numbers."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.tiny_family import save_tiny_family

    family = save_tiny_family(tmp_path / "tiny")
    file = next((family / "unet").glob("*.safetensors"))
    save_file({name: tensor * torch.tensor(1.01) for name, tensor in load_file(file).items()}, file)
    settings = {f"SFUMATO_{name}_ENGINE": "torch" for name in ("ENCODER", "DECODER", "DENOISER")}
    with local_stack(family, log_dir=tmp_path, settings=settings) as other:
        done = run("replay", str(recorded), "--target", other.target, "--json")
    assert done.exit_code == 4, done.output
    found = json.loads(done.stdout)
    assert found["first_step"] == 1
    assert set(found["weights"]) == {"denoiser"}


@pytest.mark.parametrize(
    "text", ["{}", "no json", '{"sfumato_manifest": 1, "images": [], "request": {"x": 1}}']
)
def test_what_is_no_manifest_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    done = run("replay", str(tmp_path / "bad.json"), "--target", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "manifest" in done.output


def test_versions_are_the_reason_only_where_the_result_differs() -> None:
    image = {"index": 0, "latents": ["a", "b"], "sha256": "s", "num_steps": 2, "partial": False}
    before: dict[str, Any] = {"weights": {}, "versions": {"torch": "1"}, "images": [image]}
    after = {**before, "versions": {"torch": "2"}}
    assert compare(before, after).exit_code == 0
    assert compare(before, {**after, "images": [{**image, "latents": ["a", "c"]}]}).exit_code == 5
    assert compare(before, {**before, "images": []}).exit_code == 3


def test_latents_digests_are_of_the_latents_bytes(tiny_stack: Stack) -> None:
    """Two runs with one seed agree at each step, others at none."""
    with Client(tiny_stack.target) as client:
        images = [client.generate("a cat", seed=seed, num_inference_steps=3).images[0] for seed in (1, 1, 2)]
    assert images[0].latents_digests == images[1].latents_digests
    assert not set(images[0].latents_digests) & set(images[2].latents_digests)
    assert Image.open(io.BytesIO(images[0].data)).size == (images[0].width, images[0].height)
