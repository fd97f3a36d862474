"""Settings of the denoiser, from SFUMATO_DENOISER_*."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from sfumato.common.config import FamiliesSettings

MAX_TOKENS = 1024  # of a row of conditioning


class DenoiserSettings(FamiliesSettings):
    """The denoiser's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_DENOISER_", frozen=True)

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the UNet; the halves need engine torch, which auto then is."
    )
    batch_invariant: bool = Field(
        True,
        description="Steps of different requests share a forward only where each keeps the bits that it has "
        "alone. false: wherever it pays, at the price of last bits that depend on the company.",
    )
    max_latent_area: int = Field(128 * 128, gt=0, description="Largest latent height times width.")
    max_rows: int = Field(16, gt=0, description="Most conditioning rows of a trajectory.")
    max_adapters: int = Field(
        4,
        gt=0,
        description="Most LoRA adapters kept loaded; each has copies of the layers that it changes.",
    )
    max_kept_graphs: int = Field(64, gt=0, description="Most rows kept for a gradient at one time.")

    @model_validator(mode="after")
    def _dtype_has_its_engine(self) -> Self:
        if self.dtype != "float32" and self.engine in ("onnxruntime", "triton"):
            raise ValueError(f"dtype {self.dtype} needs engine torch or auto, not {self.engine}")
        return self

    @property
    def unet_engine(self) -> str:
        """The engine, which a precision other than float32 decides."""
        return self.engine if self.dtype == "float32" else "torch"
