"""`sfumato compare`, and guidance on the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sfumato_client.stack import Stack
from tests.e2e.test_cli import sfumato


def test_compare_draws_a_row_for_each_kind_and_a_column_for_each_seed(
    tiny_stack: Stack, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    ran = sfumato(
        "compare", "a cat", "-o", sheet, "--seeds", 2, "--seed", 7, "--steps", 2, "--json",
        target=tiny_stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["seeds"] == [7, 8]
    assert [row["label"] for row in answer["settings"]] == ["none", "clip", "noised-clip", "cfg"]
    width, height = Image.open(sheet).size
    assert width > 2 * 128
    assert height > 4 * 128


def test_a_request_id_is_the_same_request_in_every_command(tiny_stack: Stack, tmp_path: Path) -> None:
    sheet, edited = tmp_path / "sheet.png", tmp_path / "edited.png"
    kept = ("--request-id", "mine", "--on-disconnect", "continue", "--keep-seconds", 60, "--steps", 2)
    compared = ("compare", "a cat", "-o", sheet, "--kind", "none", "--seeds", 1, "--json", *kept)
    first, again = (sfumato(*compared, target=tiny_stack.target) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert json.loads(first.stdout)["seeds"] == json.loads(again.stdout)["seeds"]  # else random
    edit = ("edit-prompt", "a cat", "--to", "a dog", "-o", edited)
    other = sfumato(*edit, *kept, target=tiny_stack.target)
    assert other.returncode == 1
    assert "already exists" in other.stderr
    wrong = sfumato(*edit, "--on-disconnect", "wait", target=tiny_stack.target)
    assert wrong.returncode == 2
    assert "--on-disconnect" in wrong.stderr


def test_generate_takes_weighted_prompts_and_image_prompts(tiny_stack: Stack, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    ran = sfumato(
        "generate", "a cat", "-o", tmp_path / "x.png", "--steps", 2, "--guidance", "clip", "--json",
        "--prompt-weight", "a hat:-0.5", "--image-prompt", f"{tmp_path / 'red.png'}:2",
        "--guidance-interval", 0.0, 0.9, target=tiny_stack.target,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    clip = json.loads(ran.stdout)["parameters"]["guidance"]["clip"]
    assert (clip["prompts"], clip["prompt_weights"]) == (["a cat", "a hat"], [1.0, -0.5])
    assert clip["image_prompt_weights"] == [2.0]


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--guidance", "magic"], "noised-clip", 2),
        (["--prompt-weight", "a hat"], "TEXT:WEIGHT", 2),
        (["--image-prompt", "nowhere.png"], "nowhere.png", 2),
        (["--guidance", "none", "--num-cutouts", "3"], "guidance.clip must be left out", 1),
    ],
)
def test_a_mistake_in_guidance_gets_one_helpful_line(
    tiny_stack: Stack, tmp_path: Path, arguments: list[str], said: str, code: int
) -> None:
    ran = sfumato("generate", "a cat", "-o", tmp_path / "x.png", *arguments, target=tiny_stack.target)
    assert ran.returncode == code
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
