"""`sfumato models check` and `import`, as a user runs them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sfumato.common.recorded import record
from sfumato_client.stack import local_stack
from tests.e2e.test_cli import sfumato
from tests.tiny_models import tiny_stylegan2


def test_a_family_is_checked_imported_into_and_checked_again(tiny_family: Path, tmp_path: Path) -> None:
    family = shutil.copytree(tiny_family, tmp_path / "mine")
    shutil.rmtree(family / "stylegan2")
    before = json.loads(sfumato("models", "check", family, "--json").stdout)
    assert any("stylegan2" in parts for parts in before["missing"].values())
    torch.save({"g_ema": tiny_stylegan2().state_dict()}, tmp_path / "faces.pt")
    imported = sfumato("models", "import", "stylegan2", tmp_path / "faces.pt", family, "--name", "faces")
    assert imported.returncode == 0, imported.stderr
    record(family, "owner/name", "0123abc")
    (family / "tokenizer" / "tokenizer_config.json").write_text("{}")
    checked = sfumato("models", "check", family)
    assert checked.returncode == 0
    assert checked.stdout.count("changed") == 1
    assert "changed since it was fetched: tokenizer/tokenizer_config.json" in checked.stdout
    assert "styleclip" in checked.stdout
    assert "stylegan2/faces" in checked.stdout


def test_a_broken_family_fails_with_the_files_and_keys_name(tiny_family: Path, tmp_path: Path) -> None:
    family = shutil.copytree(tiny_family, tmp_path / "broken")
    file = family / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("decoder.conv_out.bias")
    save_file(tensors, file)
    checked = sfumato("models", "check", family)
    assert checked.returncode == 1
    assert f"{file}: decoder.conv_out.bias is missing" in checked.stderr.replace("\n", "")
    nowhere = sfumato("models", "check", tmp_path / "nowhere")
    assert nowhere.returncode == 1
    assert "is not a folder" in nowhere.stderr.replace("\n", " ")


def test_each_kind_of_import_explains_itself() -> None:
    for kind in ("checkpoint", "vqgan", "stylegan2", "identity", "noised-clip", "fetch"):
        told = sfumato("models", "import", kind, "--help")
        assert told.returncode == 0
        assert f"sfumato models import {kind}" in told.stdout


def test_families_are_loaded_used_and_unloaded_by_name(tiny_family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "families"
    shutil.copytree(tiny_family, folder / "other")
    settings = {f"SFUMATO_{name}_ENGINE": "torch" for name in ("ENCODER", "DECODER", "DENOISER")}
    with local_stack(tiny_family, log_dir=tmp_path, families=folder, settings=settings) as stack:
        listed = sfumato("models", target=stack.target).stdout
        assert "can be loaded: families/other" in listed
        assert "memory for families, MiB: decoder " in listed
        generate = ("generate", "a cat", "-o", tmp_path / "a.png", "--model", "other", "--steps", 2, "--json")
        refused = sfumato(*generate, target=stack.target)
        assert (refused.returncode, "families/other" in refused.stderr) == (1, True)
        loaded = sfumato("models", "load", "other", target=stack.target)
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stdout.startswith("families/other: memory, MiB: decoder ")
        made = sfumato(*generate, target=stack.target)
        assert json.loads(made.stdout)["parameters"]["family"] == "families/other"
        families = json.loads(sfumato("models", "--json", target=stack.target).stdout)
        assert [entry["name"] for entry in families] == ["families/tiny", "families/other"]
        assert sfumato("models", "unload", "other", target=stack.target).returncode == 0
        again = sfumato("models", "unload", "other", target=stack.target)
        assert (again.returncode, "families/tiny" in again.stderr) == (1, True)
