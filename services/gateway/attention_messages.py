"""Attention's part of the gateway's messages."""

from typing import Any

from sfumato_protos.v1 import gateway_pb2

from sfumato.common.tensors import to_message
from sfumato.gateway.attention_maps import AttentionOptions
from sfumato.gateway.events import Attended


def given_options(message: gateway_pb2.AttentionMapOptions) -> dict[str, Any]:
    """The options that the client set; the aggregation by name, an unknown one as its number."""
    given: dict[str, Any] = {descriptor.name: value for descriptor, value in message.ListFields()}
    if "aggregation" in given:
        value = gateway_pb2.AttentionAggregation.DESCRIPTOR.values_by_number.get(given["aggregation"])
        name = value.name if value else str(given["aggregation"])
        given["aggregation"] = name.removeprefix("ATTENTION_AGGREGATION_").lower()
    return given


def options_message(options: AttentionOptions) -> gateway_pb2.AttentionMapOptions:
    """Resolved options as a client would send them."""
    aggregation = f"ATTENTION_AGGREGATION_{options.aggregation.upper()}"
    return gateway_pb2.AttentionMapOptions(
        interval_steps=options.interval_steps,
        aggregation=gateway_pb2.AttentionAggregation.Value(aggregation),
    )


def maps_message(event: Attended) -> gateway_pb2.AttentionMaps:
    """The maps as they stand."""
    return gateway_pb2.AttentionMaps(
        image_index=event.image_index,
        step=event.step,
        num_steps=event.num_steps,
        words=event.words,
        maps=to_message(event.maps),
    )
