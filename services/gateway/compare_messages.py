"""A CompareRequest to the parameters of each setting."""

import secrets
from typing import Any

from sfumato_protos.v1 import gateway_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted, SfumatoError
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.guidance_messages import given_guidance
from sfumato.gateway.parameters import FamilyInfo, Parameters, resolve

MAX_SETTINGS = 16
MAX_LABEL_CHARACTERS = 100
SET_PER_SETTING = ("guidance", "attention_maps")
FOR_CFG = ("guidance_scale", "negative_prompt")


def resolved_settings(
    request: gateway_pb2.CompareRequest, shared: dict[str, Any], family: FamilyInfo, limits: GatewaySettings
) -> list[Parameters]:
    """Each setting as a request of its own, all with the same seed.

    Args:
        request: the comparison.
        shared: the fields that its `request` set.
        family: which family will run it.
        limits: the limits.

    Raises:
        SfumatoError: with the field, such as "settings[1].guidance.clip.scale".
    """
    if not request.settings:
        raise InvalidArgument("settings", f"1 to {MAX_SETTINGS}", "empty", "Say what to compare.")
    if len(request.settings) > MAX_SETTINGS:
        raise ResourceExhausted("settings", f"at most {MAX_SETTINGS}", len(request.settings))
    for name in SET_PER_SETTING:
        if name in shared:
            raise InvalidArgument(f"request.{name}", "left out", "given")
    shared.setdefault("seed", secrets.randbits(32))
    return [
        _resolved(f"settings[{index}]", setting, shared, family, limits)
        for index, setting in enumerate(request.settings)
    ]


def _resolved(
    name: str,
    setting: gateway_pb2.CompareSetting,
    shared: dict[str, Any],
    family: FamilyInfo,
    limits: GatewaySettings,
) -> Parameters:
    if len(setting.label) > MAX_LABEL_CHARACTERS:
        limit = f"at most {MAX_LABEL_CHARACTERS} characters"
        raise InvalidArgument(f"{name}.label", limit, f"{len(setting.label)} characters")
    guidance = given_guidance(setting.guidance)
    given = {**shared, "guidance": guidance}
    if not str(guidance.get("kind", "cfg")).startswith("cfg"):
        given = {key: value for key, value in given.items() if key not in FOR_CFG}
    if setting.HasField("guidance_scale"):
        given["guidance_scale"] = setting.guidance_scale
    try:
        return resolve(given, family, limits)
    except SfumatoError as error:
        if error.field.startswith("guidance"):
            error.field = f"{name}.{error.field}"
        raise
