"""Weights that cannot be used are told apart by their headers, in one line, before memory is taken."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.common.checked_weights import WeightsError, read_weights
from sfumato.common.errors import NotFound
from sfumato.common.family_check import check_family
from sfumato.common.family_parts import check_part, parts_of, pipeline_config
from tests.tiny_variants import save_refiner, save_sdxl

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def family(tiny_family: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(tiny_family, tmp_path / "family")


def refusal(family: Path, part: str = "unet") -> str:
    """The line that says what is wrong."""
    with pytest.raises(WeightsError) as refused:
        check_part(family, part)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_every_part_of_a_sound_family_fits(family: Path) -> None:
    for part in parts_of(family):
        weights = check_part(family, part)
        held = [load_file(file) for file in weights.files]
        assert weights.num_parameters == sum(t.numel() for tensors in held for t in tensors.values())


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first byte of the file is then a pickle's: one file in 32 is so."""
    file = tmp_path / "model.safetensors"
    for padding in range(256):
        save_file({"a": torch.ones(2)}, file, metadata={"pad": "x" * padding})
        if file.read_bytes().startswith(b"\x80"):
            break
    assert file.read_bytes()[0] == 0x80
    assert read_weights(tmp_path).shapes == {"a": (2,)}


@pytest.mark.parametrize("config", ["{", "[]", '{"block_out_channels": [0, "x"]}'])
def test_a_damaged_configuration_is_named(family: Path, config: str) -> None:
    (family / "vae" / "config.json").write_text(config)
    assert "vae: the configuration makes no model" in refusal(family, "vae")


def test_a_file_cut_short_is_named(family: Path) -> None:
    file = family / UNET
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 3, 0):
        file.write_bytes(whole[:length])
        assert str(file) in refusal(family)


def test_a_pickle_by_another_name_is_never_run(family: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    for write in (
        lambda file: file.write_bytes(pickle.dumps({"conv_in.weight": Bomb()})),
        lambda file: torch.save({"conv_in.weight": Bomb()}, file),
    ):
        write(family / UNET)
        assert "pickle" in refusal(family)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("conv_out.bias"), "conv_out.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(3)), "extra is not of this architecture"),
        (
            lambda t: t.update({"conv_in.bias": torch.zeros(7)}),
            "conv_in.bias has shape [7]; the configuration asks for [32]",
        ),
    ],
)
def test_a_wrong_key_is_named(family: Path, change: object, told: str) -> None:
    tensors = load_file(family / UNET)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, family / UNET)
    message = refusal(family)
    assert told in message
    assert str(family / UNET) in message


def test_pickled_weights_alone_are_not_taken_for_none(family: Path) -> None:
    (family / UNET).rename(family / "unet" / "diffusion_pytorch_model.bin")
    assert "sfumato models import" in refusal(family)
    (family / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert "holds no weights" in refusal(family)


def test_an_older_librarys_names_are_known(family: Path) -> None:
    """Stable Diffusion 1.5 as published: attention of the autoencoder, prefix and positions of the text."""
    file = family / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    save_file(tensors, file)
    check_part(family, "vae")
    file = family / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(tensors, file)
    check_part(family, "text_encoder")


def test_shards_and_variants_are_found_and_a_missing_shard_is_named(family: Path) -> None:
    tensors, folder = load_file(family / UNET), family / "unet"
    (family / UNET).unlink()
    names, half = sorted(tensors), len(tensors) // 2
    shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert len(check_part(family, "unet").files) == 2
    (folder / "b.safetensors").unlink()
    assert "b.safetensors is missing" in refusal(family)
    half_precision = {key: value.half() for key, value in tensors.items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(half_precision, folder / "diffusion_pytorch_model.fp16.safetensors")
    weights = check_part(family, "unet")
    assert (weights.variant, weights.dtypes) == ("fp16", frozenset({"F16"}))


def test_an_unknown_pipeline_or_model_is_named(family: Path) -> None:
    file = family / "model_index.json"
    file.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(WeightsError, match="FluxPipeline is not served here"):
        pipeline_config(family)
    config = family / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "FluxTransformer2DModel"}))
    assert "FluxTransformer2DModel is not served here" in refusal(family)


def test_a_family_is_reported_with_what_it_serves_and_lacks(family: Path, tmp_path: Path) -> None:
    report = check_family(family)
    assert not report.errors
    assert "CLIP guidance" in report.serves
    assert report.pipeline == "StableDiffusionPipeline"
    assert report.prediction_type == "epsilon"
    shutil.rmtree(family / "clip")
    report = check_family(family)
    assert report.missing["CLIP guidance"] == ["clip"]
    assert not report.errors
    sdxl = save_sdxl(tmp_path / "sdxl")
    assert not check_family(sdxl).errors
    shutil.rmtree(sdxl / "text_encoder_2")
    assert "text_encoder_2" in next(iter(check_family(sdxl).missing.values()))
    with pytest.raises(NotFound):
        check_family(tmp_path / "nowhere")


def test_sdxls_refiner_is_for_images(tmp_path: Path) -> None:
    report = check_family(save_refiner(tmp_path / "refiner"))
    assert report.errors == []
    assert report.serves[0].startswith("image-to-image, inpainting")


def test_a_service_with_wrong_weights_says_so_in_one_line_and_ends(family: Path) -> None:
    tensors = load_file(family / UNET)
    tensors.pop("conv_out.bias")
    save_file(tensors, family / UNET)
    ended = subprocess.run(
        [sys.executable, "-m", "sfumato.denoiser"],
        env={"SFUMATO_DENOISER_FAMILY": str(family), "PATH": "", "HOME": str(family)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if "cannot serve" in line]
    assert ended.returncode == 1
    assert len(lines) == 1
    assert "conv_out.bias is missing" in lines[0]
    assert "Traceback" not in ended.stdout + ended.stderr


def test_reading_a_header_takes_no_memory_for_the_weights(tmp_path: Path) -> None:
    """A file of 400 MB, whose numbers are a hole on disk: its header is read and nothing else."""
    size = 100 * 2**20
    header = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(8 + len(header) + 4 * size)
    before = _resident()
    assert read_weights(tmp_path).num_bytes == 4 * size
    assert _resident() - before < 50 * 2**20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
