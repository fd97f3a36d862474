"""Settings of the encoder, from SFUMATO_ENCODER_*."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sfumato.common.config import ClipSettings, FamiliesSettings


class EncoderSettings(ClipSettings, FamiliesSettings):
    """The encoder's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_ENCODER_", frozen=True)

    max_texts: int = Field(64, gt=0, description="Most texts or images of one call.")
    max_characters: int = Field(1000, gt=0, description="Longest text, in characters.")
    max_gradient_pixels: int = Field(512 * 512, gt=0, description="Largest image differentiated, in pixels.")
    max_latent_area: int = Field(128 * 128, gt=0, description="Largest latent height times width.")
    max_image_pixels: int = Field(2**24, gt=0, description="Largest image to embed, in pixels.")
