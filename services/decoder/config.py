"""Settings of the decoder, from SFUMATO_DECODER_*."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sfumato.common.config import FamiliesSettings


class DecoderSettings(FamiliesSettings):
    """The decoder's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_DECODER_", frozen=True)

    max_pixels: int = Field(1024 * 1024, gt=0, description="Largest image decoded or encoded, in pixels.")
    max_gradient_pixels: int = Field(512 * 512, gt=0, description="Largest image differentiated, in pixels.")
    max_kept_graphs: int = Field(64, gt=0, description="Most decoded images kept for a gradient at one time.")
    max_input_pixels: int = Field(2**24, gt=0, description="Largest image file read, before resizing.")
    watermark: str = Field("", max_length=32, description="Text put invisibly into images; empty: none.")
