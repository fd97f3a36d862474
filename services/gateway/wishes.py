"""What is wanted of the model services, as gossip: gateways have no store of their own, and may be several.

A wish, to load a family or to let it go, has a revision and is kept by every replica that heard it. Of all
that replicas know the highest revision holds: gateways that look at the same replicas come to the same.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.gateway.model_replicas import UNLOADED, UNLOADING, Answer

SERVICES = ("encoder", "denoiser", "decoder")


@dataclass(frozen=True)
class Wish:
    """Whether a family is wanted; the highest revision holds."""

    revision: int
    wanted: bool


def newest_wishes(answers: Sequence[Answer]) -> dict[str, Wish]:
    """By family, of all that replicas know."""
    wishes: dict[str, Wish] = {}
    for answer in answers:
        for name, model in answer.models.items():
            if model.revision > (wishes[name].revision if name in wishes else 0):
                wishes[name] = Wish(model.revision, model.state not in (UNLOADED, UNLOADING))
    return wishes


def held_everywhere(answers: Sequence[Answer], name: str) -> bool:
    """Whether each service answers, and each replica that does can use the family."""
    services = {answer.replica.service for answer in answers}
    return services == set(SERVICES) and all(answer.holds(name) for answer in answers)


def lacking(answers: Sequence[Answer], name: str, wish: Wish) -> list[Answer]:
    """Replicas that the wish is to be brought to now.

    To let a family go, denoisers first: what still has a stream there will want the decoder.
    """
    old = [answer for answer in answers if answer.revision(name) < wish.revision]
    denoisers = [answer for answer in answers if answer.replica.denoiser is not None]
    if wish.wanted or all(answer.is_free_of(name) for answer in denoisers):
        return old
    return [answer for answer in old if answer in denoisers]


def next_revision(answers: Sequence[Answer], name: str) -> int:
    """Of a wish that is newer than all that are known."""
    return max(time.time_ns(), 1 + max((answer.revision(name) for answer in answers), default=0))
