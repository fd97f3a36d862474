"""Settings of the denoiser, from SFUMATO_DENOISER_*."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sfumato.common.config import ModelSettings

MAX_TOKENS = 1024  # of a row of conditioning


class DenoiserSettings(ModelSettings):
    """The denoiser's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_DENOISER_", frozen=True)

    max_latent_area: int = Field(128 * 128, gt=0, description="Largest latent height times width.")
    max_rows: int = Field(16, gt=0, description="Most conditioning rows of a trajectory.")
    max_adapters: int = Field(
        4,
        gt=0,
        description="Most LoRA adapters kept loaded; each has copies of the layers that it changes.",
    )
    max_kept_graphs: int = Field(64, gt=0, description="Most rows kept for a gradient at one time.")
