"""Settings of the gateway, from SFUMATO_GATEWAY_*."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sfumato.common.config import ServerSettings


class GatewaySettings(ServerSettings):
    """The gateway's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_GATEWAY_", frozen=True)

    encoder_target: str = Field("127.0.0.1:50052", description="host:port of the encoder.")
    decoder_target: str = Field("127.0.0.1:50053", description="host:port of the decoder.")
    denoiser_targets: str = Field("127.0.0.1:50054", description="host:port of each denoiser, by commas.")
    editor_target: str = Field("", description="host:port of the editor; empty: editing is not offered.")
    editor_wait_seconds: float = Field(30.0, gt=0, description="How long a call waits for a lost editor.")
    max_num_images: int = Field(8, gt=0, description="Most images of one request.")
    max_concurrent_images: int = Field(64, gt=0, description="Most images sampled at one time.")
    max_prompt_characters: int = Field(1000, gt=0, description="Longest prompt, in characters.")
    max_num_inference_steps: int = Field(1000, gt=0, description="Most steps of a request.")
    max_pixels: int = Field(512 * 512, gt=0, description="Largest image made, width times height.")
    max_image_bytes: int = Field(8 * 2**20, gt=0, description="Largest image or mask file, in bytes.")
    max_input_pixels: int = Field(2**24, gt=0, description="Largest image or mask, in pixels.")
    replica_wait_seconds: float = Field(5.0, gt=0, description="How long a step waits for a live denoiser.")
    step_timeout_seconds: float = Field(120.0, gt=0, description="A denoiser silent for so long is lost.")
