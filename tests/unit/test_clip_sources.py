"""CLIP models of the published architectures load to open_clip's own embeddings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sfumato.common  # noqa: F401  (before open_clip, for torchvision)

import open_clip  # isort: skip
from sfumato.common.checked_weights import WeightsError
from sfumato.common.clip import clip_source
from sfumato.encoder.engine_torch import JointEncoder

CPU = torch.device("cpu")


def saved(name: str, folder: Path) -> Any:
    """The architecture with random weights, written in the hub's layout; returns open_clip's own model."""
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "RN50"])
def test_embeddings_are_open_clips(name: str, tmp_path: Path) -> None:
    reference = saved(name, tmp_path / "clip")
    joint = JointEncoder(clip_source(tmp_path, ""), CPU)  # type: ignore[arg-type]
    check_embeddings(reference, name, joint)


def check_embeddings(reference: Any, name: str, joint: JointEncoder) -> None:
    """Cosine distances to open_clip's own below 1e-5."""
    picture = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    texts = ["a photo of a cat", "two dogs"]
    with torch.no_grad():
        expected_text = reference.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
        pixels = open_clip.image_transform(224, is_train=False)(picture)[None]
        expected_image = reference.encode_image(pixels, normalize=True)
    pairs = (joint.embed_texts(texts), expected_text), (joint.embed_images([picture]), expected_image)
    for got, expected in pairs:
        assert float((1 - (got * expected).sum(-1)).abs().max()) < 1e-5


def test_quickgelu_is_taken_from_the_configuration(tmp_path: Path) -> None:
    """The same weights with the other activation are another model: it shows if that is ignored."""
    saved("RN50", tmp_path / "clip")
    joint = JointEncoder(f"local-dir:{tmp_path / 'clip'}", CPU)
    file = tmp_path / "clip" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["quick_gelu"] = True
    file.write_text(json.dumps(config))
    quick = JointEncoder(f"local-dir:{tmp_path / 'clip'}", CPU)
    similarity = (joint.embed_texts(["a cat"]) * quick.embed_texts(["a cat"])).sum()
    assert float(1 - similarity) > 3e-5  # three times what counts as equal above


def test_a_source_is_a_folder_the_hub_or_a_tag(tiny_family: Path, tmp_path: Path) -> None:
    assert clip_source(tiny_family, "") == f"local-dir:{tiny_family / 'clip'}"
    assert clip_source(tmp_path, "") is None
    assert clip_source(tmp_path, str(tiny_family / "clip")) == f"local-dir:{tiny_family / 'clip'}"
    for given in ("hf-hub:owner/name", "ViT-L-14/openai"):
        assert clip_source(tmp_path, given) == given
    with pytest.raises(WeightsError):
        JointEncoder(f"local-dir:{tmp_path_without_weights(tiny_family, tmp_path)}", CPU)


def tmp_path_without_weights(tiny_family: Path, tmp_path: Path) -> Path:
    """A clip/ that has its configuration alone."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((tiny_family / "clip/open_clip_config.json").read_bytes())
    return folder
