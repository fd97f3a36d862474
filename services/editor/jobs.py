"""Edits as durable jobs: DBOS workflows (workflow.py) on SQLite or PostgreSQL."""

import dataclasses
import fcntl
import time
from datetime import UTC, datetime

from dbos import DBOS, SetWorkflowID

from sfumato.common.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import KEY, Edit, id_of
from sfumato.editor.measures import OPEN, count_end
from sfumato.editor.records import ENDED, STATES, Job, job_of
from sfumato.editor.runs import Live, Runner
from sfumato.editor.workflow import QUEUE, launch, status_name


class Jobs:
    """All edits of the database. Blocking: call it from a thread."""

    def __init__(self, runner: Runner, settings: EditorSettings) -> None:
        self.runner, self.settings = runner, settings
        self._unknown: set[str] = set()

    def start(self) -> None:
        """Opens the database and goes on with what is unfinished.

        Raises:
            Unavailable: another editor of the same executor id runs on this state folder.
        """
        settings = self.settings
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        path = settings.state_dir / f"{settings.executor}.lock"
        self._lock = path.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable(
                f"another editor holds {path}; give this one its own SFUMATO_EDITOR_STATE_DIR"
            ) from error
        self._workflow = launch(self.runner, settings)

    def stop(self) -> None:
        """Saves what runs and closes the database."""
        self.runner.stop()
        DBOS.destroy(destroy_registry=True)
        self._lock.close()

    def find(self, operation: str, fingerprint: str | None) -> Job | None:
        """The job of that id, if there is one; a fingerprint is that of the request it must be of.

        Raises:
            AlreadyExists: it is of another request.
        """
        try:
            job = self.get(operation)
        except NotFound:
            return None
        if fingerprint is not None and job.edit.fingerprint != fingerprint:
            raise AlreadyExists(
                f"request_id {id_of(operation)} was used for another edit", field="request_id",
                limit="new, or with the same request as before", value=id_of(operation),
            )  # fmt: skip
        return job

    def check_room(self) -> None:
        """Raises ResourceExhausted when too many edits wait."""
        queued = DBOS.list_queued_workflows(queue_name=QUEUE, status="ENQUEUED", load_input=False)
        if len(queued) >= self.settings.max_queued_edits:
            limit = f"at most {self.settings.max_queued_edits}"
            raise ResourceExhausted("queued edits", limit, len(queued), "Try again when some are done.")

    def submit(self, edit: Edit) -> Job:
        """Queues an edit; when this returns, no death of a process loses it."""
        with SetWorkflowID(edit.id):
            DBOS.enqueue_workflow(QUEUE, self._workflow, dataclasses.asdict(edit))
        job = self.find(edit.id, edit.fingerprint)  # it may be another's, if two came at once
        assert job is not None
        return job

    def get(self, operation: str) -> Job:
        """
        Raises:
            NotFound: there is no such operation, or it has expired.
        """
        found = DBOS.list_workflows(workflow_ids=[operation])
        if not found:
            raise NotFound(f"there is no operations/{id_of(operation)}; it may have expired", field="name",
                           limit="an operation", value=id_of(operation))  # fmt: skip
        return job_of(found[0], self.live(operation), self.settings.result_ttl_seconds)

    def live(self, operation: str) -> Live | None:
        """The edit, where it runs in this process."""
        return self.runner.live.get(operation)

    def cancel(self, operation: str) -> None:
        """Ends an edit within one iteration; nothing where it has ended."""
        job = self.get(operation)
        if job.state in ENDED:
            return
        DBOS.cancel_workflow(operation)
        if job.state == "queued":
            count_end(job.edit.method, "cancelled")
        else:
            self.runner.cancelled.add(operation)

    def delete(self, operation: str) -> bool:
        """Forgets an edit that has ended, and its files; ask again where this returns False.

        Returns:
            Whether it is forgotten: not while a cancelled edit's last iteration, which writes, runs here.

        Raises:
            NotFound, FailedPrecondition: there is none, or it has not ended.
        """
        if self.get(operation).state not in ENDED:
            raise FailedPrecondition(
                f"operations/{id_of(operation)} has not ended; cancel it first", field="name",
                limit="an operation that has ended", value=id_of(operation),
            )  # fmt: skip
        if operation in self.runner.held:
            self.runner.cancelled.add(operation)  # another process may have cancelled it
            return False
        DBOS.delete_workflow(operation)
        self.runner.store.delete(operation)
        return True

    def count_open(self) -> None:
        """Sets the metric of edits that wait and that run, in the whole database."""
        counts = dict.fromkeys(("queued", "running"), 0)
        unfinished = [status for status, state in STATES.items() if state not in ENDED]
        for workflow in DBOS.list_workflows(
            name="edit", status=unfinished, load_input=False, load_output=False
        ):
            counts[STATES[str(workflow.status)]] += 1
        for state, count in counts.items():
            OPEN.labels(state).set(count)

    def sweep(self) -> int:
        """Forgets edits whose time to live is over, and files that belong to none; returns how many."""
        end = datetime.fromtimestamp(time.time() - self.settings.result_ttl_seconds, UTC).isoformat()
        expired = DBOS.list_workflows(completed_before=end, load_input=False, load_output=False)
        for workflow in expired:
            DBOS.delete_workflow(workflow.workflow_id)
            self.runner.store.delete(workflow.workflow_id)
        # Twice unknown: a submission writes its images just before its row.
        unknown = {
            name for name in self.runner.store.names() if KEY.fullmatch(name) and not status_name(name)
        }
        for name in unknown & self._unknown:
            self.runner.store.delete(name)
        self._unknown = unknown
        return len(expired)
