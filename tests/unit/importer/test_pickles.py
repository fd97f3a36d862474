"""Checkpoints of torch, old and new; what holds no tensors is refused in one line."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.common.checked_weights import WeightsError
from sfumato.importer.pickles import read_module, read_tensors


@pytest.mark.parametrize("as_zip", [True, False], ids=["torch 1.6 or later", "earlier"])
def test_a_checkpoint_of_any_torch_is_read(tmp_path: Path, as_zip: bool) -> None:
    held = {"g_ema": {"a": torch.randn(2, 3)}}
    torch.save(held, tmp_path / "g.pt", _use_new_zipfile_serialization=as_zip)
    assert torch.equal(read_tensors(tmp_path / "g.pt", "g_ema")["a"], held["g_ema"]["a"])


@pytest.mark.parametrize("held", [[torch.ones(2)], torch.ones(2), 5])
def test_a_checkpoint_without_names_is_refused(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "g.pt")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_tensors(tmp_path / "g.pt")


def test_a_pickle_whose_entry_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n.pkl").write_bytes(pickle.dumps({"G_ema": 5}))
    with pytest.raises(WeightsError, match="holds no G_ema"):
        read_module(tmp_path / "n.pkl", "G_ema")


def test_a_tensor_that_repeats_one_number_to_any_size_is_refused(tmp_path: Path) -> None:
    torch.save({"codebook": torch.zeros(1).expand(2**30, 256)}, tmp_path / "g.pt")
    assert (tmp_path / "g.pt").stat().st_size < 10_000
    with pytest.raises(WeightsError, match="4 bytes of codebook where it has 1099511627776"):
        read_tensors(tmp_path / "g.pt")
