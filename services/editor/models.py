"""The family's weights for the editing methods: loaded at first use, frozen, kept."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sfumato.common.clip import clip_source, load_clip
from sfumato.common.family import family_name, part_of
from sfumato.common.family_parts import check_part
from sfumato.common.identity import load_identity
from sfumato.common.stylegan2 import StyleGAN2, load_stylegan2
from sfumato.common.weights import weights_digest
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.method import Tensors
from sfumato.editor.options import folder_of
from sfumato.editor.raft import load_raft


class FamilyModels:
    """method.Models of a family on a device."""

    def __init__(self, family: Path, device: torch.device, store: ArtifactStore, clip: str = "") -> None:
        """clip: as common.clip.clip_source has it."""
        self.family, self.device, self._store, self._given_clip = family, device, store, clip
        self._generators: dict[str, StyleGAN2] = {}
        self._digests: dict[tuple[str, ...], str] = {}

    @cached_property
    def _clip(self) -> tuple[Any, Any, Any]:
        source = clip_source(self.family, self._given_clip)
        return load_clip(source or f"local-dir:{part_of(self.family, 'clip')}")

    @property
    def clip(self) -> Any:
        """open_clip model of clip/, or of what was given in its place."""
        return self._frozen(self._clip[0])

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._clip[2]

    @cached_property
    def vqgan(self) -> Any:
        """diffusers VQModel of vqgan/."""
        from diffusers import VQModel

        variant = check_part(self.family, "vqgan").variant
        model: Any = VQModel.from_pretrained(self.family / "vqgan", use_safetensors=True, variant=variant)
        return self._frozen(model)

    @cached_property
    def identity(self) -> Any:
        """IdentityNetwork of identity/."""
        check_part(self.family, "identity")
        return load_identity(self.family / "identity").to(self.device)

    @cached_property
    def raft(self) -> Any:
        """torchvision RAFT of raft/, or None."""
        folder = self.family / "raft"
        return load_raft(folder).to(self.device) if folder.is_dir() else None

    def stylegan2(self, name: str) -> Any:
        """StyleGAN2 of stylegan2/NAME/."""
        if name not in self._generators:
            folder = folder_of(self.family, "stylegan2", name, "generator")
            check_part(self.family, f"stylegan2/{name}")
            self._generators[name] = load_stylegan2(folder).to(self.device)
        return self._generators[name]

    def cached(self, name: str, parts: tuple[str, ...], compute: Callable[[], Tensors]) -> Tensors:
        """What is computed once from these parts' weights, and kept in the store under their digest."""
        path = f"_cache/{family_name(self.family)}/{self._digest(parts)[:32]}/{name}.safetensors"
        return self._store.cached(path, compute)

    def _digest(self, parts: tuple[str, ...]) -> str:
        """Of the parts' files, read once: the weights in memory do not change either."""
        if parts not in self._digests:
            given = self._given_clip if "clip" in parts else ""
            held = [part for part in parts if part != "clip" or not given]
            self._digests[parts] = weights_digest(self.family, *held, other=given)
        return self._digests[parts]

    def _frozen(self, model: Any) -> Any:
        return model.to(device=self.device, dtype=torch.float32).eval().requires_grad_(False)
