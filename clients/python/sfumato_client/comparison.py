"""Kinds of guidance side by side: the request, what comes back, and the contact sheet."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont
from sfumato_protos.v1 import gateway_pb2

from sfumato_client.fields import check_names, set_field
from sfumato_client.guidance import GuidanceOptions, build_guidance
from sfumato_client.requests import GenerateOptions, build_request
from sfumato_client.results import GenerateResult

MARGIN, LABEL_WIDTH, LINE = 8, 150, 18


class SettingOptions(GuidanceOptions, total=False):
    """What may differ between the settings of a comparison."""

    guidance_scale: float | None  # as GenerateOptions.guidance_scale. Default: what the settings share


@dataclass
class ComparisonResult:
    """What a comparison gave: a generation for each setting, by its label, in the order asked for."""

    generations: dict[str, GenerateResult] = field(default_factory=dict)

    def add(self, event: gateway_pb2.CompareResponse) -> None:
        """Takes in one event of the stream."""
        self.generations.setdefault(event.label, GenerateResult()).add(event.event)


def build_comparison(
    prompt: str, settings: Mapping[str, SettingOptions], options: GenerateOptions
) -> gateway_pb2.CompareRequest:
    """The message.

    Args:
        prompt: what all images show.
        settings: label to what differs.
        options: what the settings share.

    Raises:
        TypeError, ValueError, OSError: as build_request.
    """
    request = gateway_pb2.CompareRequest(request=build_request(prompt, options))
    for label, setting in settings.items():
        check_names(setting, SettingOptions)
        message = request.settings.add(guidance=build_guidance(setting))
        set_field(message, "label", label)
        if setting.get("guidance_scale") is not None:
            set_field(message, "guidance_scale", setting["guidance_scale"])
    return request


def draw_comparison(prompt: str, result: ComparisonResult) -> Image.Image:
    """A sheet: a row for each setting with its label, a column for each seed."""
    font = ImageFont.load_default(13)
    rows = list(result.generations.items())
    images = [[Image.open(io.BytesIO(made.data)) for made in row.images] for _, row in rows]
    width, height = images[0][0].size
    enlarge = max(1, 128 // max(width, height))
    cell = (width * enlarge, height * enlarge)
    columns = max(len(row) for row in images)
    size = (
        LABEL_WIDTH + columns * (cell[0] + MARGIN) + MARGIN,
        2 * LINE + 2 * MARGIN + len(rows) * (cell[1] + MARGIN),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), prompt, "black", font)
    for column, made in enumerate(rows[0][1].images):
        place = (LABEL_WIDTH + column * (cell[0] + MARGIN), MARGIN + LINE)
        draw.text(place, f"seed {made.seed}", "black", font)
    for line, ((label, _), row) in enumerate(zip(rows, images, strict=True)):
        top = 2 * LINE + 2 * MARGIN + line * (cell[1] + MARGIN)
        draw.text((MARGIN, top + cell[1] // 2 - LINE // 2), label, "black", font)
        for column, picture in enumerate(row):
            place = (LABEL_WIDTH + column * (cell[0] + MARGIN), top)
            sheet.paste(picture.convert("RGB").resize(cell, Image.Resampling.NEAREST), place)
    return sheet
