"""Gateways that look at the same replicas want the same families."""

from typing import Any

from sfumato_protos.v1 import model_pb2

from sfumato.gateway.model_replicas import Answer, ModelReplica
from sfumato.gateway.wishes import Wish, held_everywhere, lacking, newest_wishes, next_revision

A, B = "families/a", "families/b"


def answer(service: str, **models: tuple[str, int]) -> Answer:
    """Of a replica with these families: state and revision."""
    stub: Any = None
    denoiser: Any = object() if service == "denoiser" else None
    messages = {
        f"families/{name}": model_pb2.Model(
            family=f"families/{name}",
            state=model_pb2.ModelState.Value(f"MODEL_STATE_{state}"),
            revision=number,
        )
        for name, (state, number) in models.items()
    }
    return Answer(ModelReplica(service, service, stub, denoiser), messages, frozenset(), 0)


def test_the_highest_revision_holds_and_the_services_own_family_is_no_wish() -> None:
    first = answer("encoder", own=("LOADED", 0), a=("LOADED", 5), b=("UNLOADED", 9))
    second = answer("decoder", own=("LOADED", 0), a=("UNLOADED", 4), b=("LOADED", 8))
    assert newest_wishes([first, second]) == {A: Wish(5, True), B: Wish(9, False)}
    assert newest_wishes([answer("encoder", a=("LOADING", 3))]) == {A: Wish(3, True)}
    assert next_revision([answer("encoder", a=("LOADED", 2**62))], A) == 2**62 + 1


def test_a_family_is_served_when_every_replica_of_every_service_has_it() -> None:
    whole = [answer(service, a=("LOADED", 1)) for service in ("encoder", "denoiser", "decoder")]
    assert held_everywhere(whole, A)
    assert not held_everywhere(whole[:2], A)
    assert not held_everywhere([*whole, answer("denoiser", a=("LOADING", 1))], A)
    assert not held_everywhere([*whole, answer("denoiser")], A)


def test_a_family_leaves_denoisers_first_and_the_others_when_no_stream_uses_it() -> None:
    encoder, decoder = (answer(service, a=("LOADED", 5)) for service in ("encoder", "decoder"))
    wish = Wish(6, False)
    before, during, after = (
        answer("denoiser", a=state) for state in (("LOADED", 5), ("UNLOADING", 6), ("UNLOADED", 6))
    )
    assert newest_wishes([encoder, during]) == {A: wish}
    assert lacking([encoder, before, decoder], A, wish) == [before]
    assert lacking([encoder, during, decoder], A, wish) == []
    assert lacking([encoder, after, decoder], A, wish) == [encoder, decoder]
    assert lacking([encoder, after], A, Wish(7, True)) == [encoder, after]
