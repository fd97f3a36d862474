"""What the database says of an edit."""

from dataclasses import dataclass
from typing import Any

from dbos import DBOS, WorkflowStatus

from sfumato.common.errors import InvalidArgument
from sfumato.editor.edits import Edit, owner_of
from sfumato.editor.failures import Failure
from sfumato.editor.method import Progress
from sfumato.editor.runs import Live

ENDED = ("succeeded", "failed", "cancelled")
STATES = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "CANCELLED": "cancelled",
}


@dataclass(frozen=True)
class Job:
    """An edit as it stands."""

    edit: Edit
    state: str  # queued, running, succeeded, failed or cancelled
    iteration: int
    num_iterations: int
    ended_ms: int | None  # milliseconds since 1970
    expires_ms: int | None
    failure: Failure | None
    result: list[tuple[str, int]]  # file name, bytes

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


def job_of(workflow: WorkflowStatus, live: Live | None, ttl_seconds: int) -> Job:
    """The job of a workflow, loaded with input and output."""
    assert workflow.input is not None
    edit = Edit.from_json(workflow.input["args"][0])
    output: dict[str, Any] = workflow.output or {}
    state = STATES.get(str(workflow.status), "failed")
    failure = None
    if state == "cancelled":
        failure = Failure("CANCELLED", "CANCELLED", "the edit was cancelled")
    elif "failure" in output:
        state, failure = "failed", Failure(**output["failure"])
    elif state == "failed":
        failure = Failure("INTERNAL", "INTERNAL", f"the job ended as {workflow.status}: {workflow.error}")
    if live is not None and not output:
        output = {"iteration": live.state.iteration, "num_iterations": live.state.num_iterations}
    elif not output and state != "queued":
        output = last_chunk(edit.id)
    ended = workflow.completed_at if state in ENDED else None
    return Job(
        edit, state, output.get("iteration", 0), output.get("num_iterations", 0),
        ended, ended and ended + ttl_seconds * 1000, failure, output.get("result", []),
    )  # fmt: skip


def chunks(operation: str) -> list[dict[str, Any]]:
    """The recorded chunks of an edit, in order."""
    steps = DBOS.list_workflow_steps(operation)
    return [step["output"] for step in steps if step["function_name"] == "iterate" and step["output"]]


def last_chunk(operation: str) -> dict[str, Any]:
    """The last recorded chunk; empty before the first."""
    return (chunks(operation) or [{}])[-1]


def recorded_progress(operation: str, after: int) -> list[Progress]:
    """What is recorded of the iterations behind `after`."""
    return [
        Progress(iteration, chunk["num_iterations"], losses)
        for chunk in chunks(operation)
        for iteration, losses in chunk["progress"]
        if iteration > after
    ]


def page(size: int, token: str, owner: str) -> tuple[list[str], str]:
    """Keys of one page of the owner's edits ("": of all), the newest first, and the next page's token.

    The last page's token is "".

    The order is by creation, then id: SQLite's rows have whole seconds only, so that many may share one.

    Raises:
        InvalidArgument: the token is none that this gave.
    """
    rows = DBOS.list_workflows(name="edit", load_input=False, load_output=False)
    owned = [row for row in rows if not owner or owner_of(row.workflow_id) == owner]
    keys = sorted((-(row.created_at or 0), row.workflow_id) for row in owned)
    if token:
        created, _, operation = token.partition("-")
        if not created.isdigit() or not operation:
            raise InvalidArgument("page_token", "a token that this service gave", token)
        keys = [key for key in keys if key > (-int(created), operation)]
    shown = keys[:size]
    more = f"{-shown[-1][0]}-{shown[-1][1]}" if len(keys) > size else ""
    return [operation for _, operation in shown], more
