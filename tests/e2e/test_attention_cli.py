"""`sfumato attention` as a person runs it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sfumato_client.stack import Stack
from tests.e2e.test_cli import sfumato


def test_attention_draws_a_tile_per_word_and_prints_their_centres(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "maps.png"
    ran = sfumato(
        "attention", "a cat left of a star", "-o", file, "--steps", 4, "--seed", 3, "--json",
        target=stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert [entry["word"] for entry in answer["words"]] == ["a", "cat", "left", "of", "a", "star"]
    assert all(0 < place < 1 for entry in answer["words"] for place in entry["centre_of_mass"])
    assert Image.open(file).size == (6 * 192, 2 * (192 + 22))


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--layers", "some"], "largest, all"), (["-o", "x.txt"], ".webp")]
)
def test_a_mistake_is_said_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    ran = sfumato("attention", "a cat", "-o", tmp_path / "x.png", *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr


def test_edit_prompt_writes_the_edited_image_and_its_source(stack: Stack, tmp_path: Path) -> None:
    files = tmp_path / "dog.png", tmp_path / "cat.png"
    ran = sfumato(
        "edit-prompt", "a cat", "--to", "a dog", "-o", files[0], "--source-output", files[1], "--steps", 4,
        "--seed", 3, "--reweight", "dog=1.5", "--json", target=stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (answer["kind"], answer["seed"], answer["files"]) == ("replace", 3, [str(file) for file in files])
    assert files[0].read_bytes() != files[1].read_bytes()


def test_a_weight_that_is_no_number_is_said(tmp_path: Path) -> None:
    ran = sfumato("edit-prompt", "a", "--to", "b", "-o", tmp_path / "x.png", "--reweight", "b=much")
    assert ran.returncode == 2
    assert "WORD=C" in ran.stderr
