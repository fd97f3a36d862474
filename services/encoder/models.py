"""What the encoder makes of a family's folder: text encoder(s), the joint space, the noise-aware CLIP."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.common.adapters import adapters_of
from sfumato.common.clip import clip_source
from sfumato.common.errors import NotFound
from sfumato.common.model_memory import copies_of, model_bytes
from sfumato.common.weights import weights_digest
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.engine_onnx import use_engine
from sfumato.encoder.engine_torch import JointEncoder, TextEncoder
from sfumato.encoder.noised import NoisedClip, Space

# Folders of the family, those of SDXL too.
WEIGHTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "clip", "clip_noised", "adapters")


@dataclass
class EncoderModels:
    """One family's.

    Attributes:
        joint, noised: None where the family has none.
        adapters: files by name; adapted: the text encoders with those that were asked for.
    """

    text_encoder: TextEncoder
    joint_or_none: JointEncoder | None
    noised_or_none: NoisedClip | None
    weights_digest: str
    adapters: dict[str, Path]
    adapted: dict[str, TextEncoder] = field(default_factory=dict)

    @property
    def joint(self) -> JointEncoder:
        """
        Raises:
            NotFound: the family has none.
        """
        if self.joint_or_none is None:
            raise NotFound("the family has no clip/ folder, so no joint space")
        return self.joint_or_none

    @property
    def noised(self) -> NoisedClip:
        """
        Raises:
            NotFound: the family has none.
        """
        if self.noised_or_none is None:
            raise NotFound("the family has no clip_noised/ folder, so no noise-aware CLIP")
        return self.noised_or_none

    def space(self, noised: bool) -> Space:
        """The joint space, or the one that the noise-aware CLIP compares in. Raises as these."""
        return (noised and self.noised.space) or self.joint

    def with_adapter(self, name: str) -> TextEncoder:
        """The text encoder with that adapter; a few MB each, so all are kept. On the model's thread alone.

        Raises:
            NotFound: there is no such adapter. WeightsError: it is none of this encoder.
        """
        if name not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise NotFound(f"no adapter {name!r:.60}; the family has {known}", field="adapter",
                           limit=known, value=name)  # fmt: skip
        if name not in self.adapted:
            self.adapted[name] = self.text_encoder.with_adapter(self.adapters[name])
        return self.adapted[name]


def load_models(family: Path, settings: EncoderSettings, device: torch.device) -> EncoderModels:
    """Loads them."""
    text_encoder = TextEncoder(family, device)
    use_engine(text_encoder, settings.engine, settings.onnx_cache, settings.cpu_threads, settings.triton_url)
    # Another CLIP that was set is in the place of the service's own family's.
    given = settings.clip if family == settings.family else ""
    source = clip_source(family, given)
    joint = JointEncoder(source, device) if source else None
    noised = NoisedClip(family, device, joint) if (family / "clip_noised").is_dir() else None
    digest = weights_digest(family, *WEIGHTS, other=given)
    return EncoderModels(text_encoder, joint, noised, digest, adapters_of(family))


def warm(models: EncoderModels, device: torch.device) -> None:
    """Runs them once; on the model's thread, so that nobody else's forward counts as memory of a row."""
    text_encoder, joint = models.text_encoder, models.joint_or_none
    text_encoder.forward.warm(device, *text_encoder.tokenize(["warm"]).ids)
    if joint is not None:
        joint.text_forward.warm(device, joint.tokenize(["warm"]))
        joint.image_forward.warm(device, torch.zeros(1, 3, joint.image_size, joint.image_size))


def num_bytes(family: Path, settings: EncoderSettings, device: torch.device) -> int:
    """Memory that they take, by the headers of the weights; a CLIP from elsewhere is not counted."""
    is_xl = (family / "text_encoder_2").is_dir()  # on torch, whatever the engine
    text = 1 if is_xl else copies_of(settings.engine, device)
    copies = {"text_encoder": text, "text_encoder_2": 1, "clip": 1, "clip_noised": 1}
    if settings.clip and family == settings.family:
        del copies["clip"]
    return model_bytes(family, copies)
