"""The identity network: unit features, and a folder that brings it back."""

from pathlib import Path

import pytest
import torch

from sfumato.common.errors import NotFound
from sfumato.common.identity import load_identity, save_identity
from tests.tiny_models import tiny_identity


def test_features_are_unit_vectors_whatever_the_size(tmp_path: Path) -> None:
    model = tiny_identity()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = model(images)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-6)
    save_identity(model, tmp_path)
    assert torch.allclose(load_identity(tmp_path)(images), features, atol=0.01)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        load_identity(tmp_path)
