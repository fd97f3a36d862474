"""StyleGAN2 from rosinality's and NVIDIA's files: the same generator comes out, and no code runs."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.common.checked_weights import WeightsError
from sfumato.common.stylegan2 import StyleGAN2, load_stylegan2
from sfumato.importer.parts import import_stylegan2
from sfumato.importer.stylegan2 import config_of, from_nvidia
from tests.tiny_models import tiny_stylegan2


def nvidia_names(model: StyleGAN2) -> dict[str, torch.Tensor]:
    """The model under the names and shapes of stylegan2-ada-pytorch's Generator."""
    own = model.state_dict()
    found = {"synthesis.b4.const": own["input.input"][0], "mapping.w_avg": torch.zeros(model.d)}
    for index in range(model.config["num_mapping_layers"]):  # type: ignore[arg-type]
        for kind in ("weight", "bias"):
            found[f"mapping.fc{index}.{kind}"] = own[f"style.{index + 1}.{kind}"]
    levels = len(model.config["channels"])  # type: ignore[arg-type]
    for level in range(levels):
        block = f"synthesis.b{4 * 2**level}"
        convs = (
            {"conv1": "conv1"}
            if level == 0
            else {"conv0": f"convs.{2 * level - 2}", "conv1": f"convs.{2 * level - 1}"}
        )
        for theirs, ours in convs.items():
            noise = 0 if level == 0 else 2 * level - (theirs == "conv0")
            found[f"{block}.{theirs}.weight"] = own[f"{ours}.conv.weight"][0]
            found[f"{block}.{theirs}.affine.weight"] = own[f"{ours}.conv.modulation.weight"]
            found[f"{block}.{theirs}.affine.bias"] = own[f"{ours}.conv.modulation.bias"]
            found[f"{block}.{theirs}.noise_strength"] = own[f"{ours}.noise.weight"][0]
            found[f"{block}.{theirs}.bias"] = own[f"{ours}.activate.bias"]
            found[f"{block}.{theirs}.noise_const"] = own[f"noises.noise_{noise}"][0, 0]
            found[f"{block}.{theirs}.resample_filter"] = torch.ones(4, 4)
        rgb = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
        found[f"{block}.torgb.weight"] = own[f"{rgb}.conv.weight"][0]
        found[f"{block}.torgb.affine.weight"] = own[f"{rgb}.conv.modulation.weight"]
        found[f"{block}.torgb.affine.bias"] = own[f"{rgb}.conv.modulation.bias"]
        found[f"{block}.torgb.bias"] = own[f"{rgb}.bias"].flatten()
    return found


def trained() -> StyleGAN2:
    """The tiny generator with every weight its own, noise too."""
    model = tiny_stylegan2()
    torch.manual_seed(9)
    for name, parameter in model.named_parameters():
        if name.endswith(("noise.weight", "bias")):
            parameter.data.normal_()
    return model


@pytest.fixture
def pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A networks.pkl as NVIDIA's persistent classes write it, with a class that must not be made."""
    module = types.ModuleType("torch_utils.persistence")
    easy = types.ModuleType("dnnlib.util")

    class EasyDict(dict):  # type: ignore[type-arg]
        __module__, __qualname__ = "dnnlib.util", "EasyDict"

    def reconstruct(meta: Any) -> None:
        (tmp_path / "ran").touch()

    reconstruct.__module__, reconstruct.__qualname__ = (
        "torch_utils.persistence",
        "_reconstruct_persistent_obj",
    )
    module._reconstruct_persistent_obj, easy.EasyDict = reconstruct, EasyDict  # type: ignore[attr-defined]
    for name, value in (("torch_utils", types.ModuleType("torch_utils")), ("torch_utils.persistence", module),
                        ("dnnlib", types.ModuleType("dnnlib")), ("dnnlib.util", easy)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, value)

    class Persistent:
        def __init__(self, state: dict[str, Any]) -> None:
            self.state = state

        def __reduce__(self) -> tuple[Any, ...]:
            meta = EasyDict(
                type="class", version=6, module_src="raise SystemExit", class_name="X", state=self.state
            )
            return reconstruct, (meta,)

    def nested(names: dict[str, torch.Tensor]) -> Persistent:
        children: dict[str, dict[str, torch.Tensor]] = {}
        own: dict[str, torch.nn.Parameter] = {}
        for name, tensor in names.items():
            first, dot, rest = name.partition(".")
            if dot:
                children.setdefault(first, {})[rest] = tensor
            else:
                own[first] = torch.nn.Parameter(tensor)
        modules = {name: nested(child) for name, child in children.items()}
        return Persistent({"_parameters": own, "_buffers": {}, "_modules": modules, "training": False})

    file = tmp_path / "networks.pkl"
    file.write_bytes(pickle.dumps({"G": None, "G_ema": nested(nvidia_names(trained()))}))
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.delitem(sys.modules, name)
    return file


def test_nvidias_pickle_gives_the_generator_and_runs_nothing(pickled: Path, tmp_path: Path) -> None:
    model, w_plus = trained(), torch.randn(2, 6, 10)
    imported = load_stylegan2(import_stylegan2(pickled, tmp_path / "family", "faces"))
    torch.testing.assert_close(imported(w_plus), model(w_plus))
    torch.testing.assert_close(imported.mapping(w_plus[:, 0]), model.mapping(w_plus[:, 0]))
    assert not (tmp_path / "ran").exists()


def test_rosinalitys_checkpoint_gives_the_generator(tmp_path: Path) -> None:
    model, w_plus = trained(), torch.randn(1, 6, 10)
    file = tmp_path / "ffhq.pt"
    torch.save({"g_ema": model.state_dict(), "latent_avg": torch.zeros(10)}, file)
    imported = load_stylegan2(import_stylegan2(file, tmp_path / "family", "faces"))
    torch.testing.assert_close(imported(w_plus), model(w_plus))


def test_the_published_size_is_read_from_the_names() -> None:
    channels = [512, 512, 512, 512, 512, 256, 128, 64, 32]
    with torch.device("meta"):
        model = StyleGAN2(1024, channels)
    assert config_of(dict(model.state_dict())) == model.config
    config, renamed = from_nvidia(nvidia_names(model))
    assert config == model.config
    assert renamed.keys() == model.state_dict().keys()


def test_a_checkpoint_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"g_ema": {"input.input": Bomb()}}, tmp_path / "bomb.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({"G_ema": Bomb()}))
    for file in ("bomb.pt", "bomb.pkl"):
        with pytest.raises(WeightsError):
            import_stylegan2(tmp_path / file, tmp_path / "family", "faces")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "family" / "stylegan2").exists() or not any(
        (tmp_path / "family/stylegan2").iterdir()
    )
