"""A family loaded, or let go, at every replica of every service; where one fails, it is undone at all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sfumato.common import calls
from sfumato.common.errors import NotFound, SfumatoError, Unavailable
from sfumato.gateway.model_replicas import Answer, ModelReplicas
from sfumato.gateway.wishes import SERVICES, newest_wishes, next_revision

UNDO_SECONDS = 30.0  # until a load that failed answers, though some replica has not let the family go yet


class Scattered(Unavailable):
    """Some replicas have the family and others have not; those are brought it in the background."""


async def all_answers(replicas: ModelReplicas) -> list[Answer]:
    """Of at least one replica of each service.

    Raises:
        Unavailable: of some service none answers.
    """
    answers = await replicas.answers()
    silent = set(SERVICES) - {answer.replica.service for answer in answers}
    if silent:
        raise Unavailable(f"no {sorted(silent)[0]} answers; try again later")
    return answers


@contextlib.asynccontextmanager
async def loaded(replicas: ModelReplicas, name: str) -> AsyncIterator[int]:
    """Loads it by a wish of that revision.

    Where one replica refuses, or the block fails, all let it go, unless it was wanted before.

    Raises:
        NotFound: there is no such family. Unavailable: a replica, or a whole service, does not answer.
        ForwardedError: one refuses.
    """
    answers = await all_answers(replicas)
    loadable = frozenset.intersection(*(answer.loadable for answer in answers))
    # Where no folder is set at all, the service says how to set one.
    if name not in loadable and all(answer.loadable for answer in answers):
        known = ", ".join(sorted(loadable)) or "none"
        raise NotFound(f"no family {name!r:.80} to load; there are {known}", field="name",
                       limit=known, value=name)  # fmt: skip
    wish, revision = newest_wishes(answers).get(name), next_revision(answers, name)
    try:
        await _all(answer.replica.load(name, revision) for answer in answers)
        await replicas.answers()  # which notes it at the denoisers
        yield revision
    except Exception:
        if wish is None or not wish.wanted:  # else others may be using it
            undo = (answer.replica.unload(name, revision + 1, UNDO_SECONDS) for answer in answers)
            await asyncio.gather(*undo, return_exceptions=True)
        raise


async def let_go(replicas: ModelReplicas, name: str) -> None:
    """Each waits for the calls that use it, as long as the deadline allows; if it fails, all keep the family.

    Raises:
        ForwardedError: one refuses, say because requests of other gateways still use it.
        Unavailable, DeadlineExceeded: one does not answer, or not in time.
        Scattered: it failed, and not all keep it.
    """
    answers = await all_answers(replicas)
    revision = next_revision(answers, name)
    try:
        # Denoisers first: they wait for the streams of other gateways' requests, which will want the decoder.
        for first in (True, False):
            await _all(
                answer.replica.unload(name, revision, calls.remaining_seconds())
                for answer in answers
                if (answer.replica.denoiser is not None) is first
            )
    except Exception as error:
        try:
            await _all(answer.replica.load(name, revision + 1) for answer in answers)
        except SfumatoError as other:
            raise Scattered(f"{name} was not let go ({error}) and not kept everywhere ({other}); "
                            "it is being loaded again") from error  # fmt: skip
        raise


async def _all(work: Any) -> None:
    """All to their ends; then the first failure is raised."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
