"""The workflow of an edit: one DBOS step per chunk of iterations.

A workflow that its process did not finish goes on, when a process of the same executor id starts, behind the
last step that the database has; its checkpoint was in the artifact store before the step was recorded.
"""

from collections.abc import Callable
from typing import Any

from dbos import DBOS, DBOSPortableJSONSerializer

from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import Edit
from sfumato.editor.runs import Runner

QUEUE = "edits"
POLL_SECONDS = 0.2
RUNNING = "PENDING"  # DBOS's word; a cancelled edit that another process deleted has none
VERSION = "1"  # of the workflow below: raise it when its steps change, and old edits are no longer taken up


def launch(runner: Runner, settings: EditorSettings) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Opens the database and goes on with what this executor has not finished; returns the workflow."""
    DBOS(
        config={
            "name": "sfumato-editor",
            "system_database_url": settings.database,
            "executor_id": settings.executor,
            "application_version": VERSION,
            "serializer": DBOSPortableJSONSerializer(),  # the default is pickle
            "log_level": "CRITICAL",  # it logs each cancellation as an error with its traceback
        }
    )
    workflow = register(runner)
    DBOS.launch()
    DBOS.register_queue(
        QUEUE,
        worker_concurrency=settings.max_running_edits,
        polling_interval_sec=POLL_SECONDS,
        on_conflict="always_update",
    )
    return workflow


def register(runner: Runner) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Tells DBOS the workflow; returns it."""

    @DBOS.step(name="iterate")
    def iterate(values: dict[str, Any], iteration: int) -> dict[str, Any]:
        edit = Edit.from_json(values)
        return runner.chunk(edit, iteration, lambda: status_name(edit.id) != RUNNING)

    @DBOS.workflow(name="edit", max_recovery_attempts=2**31 - 1)
    def workflow(values: dict[str, Any]) -> dict[str, Any]:
        chunk: dict[str, Any] = {"iteration": 0}
        ended = True
        runner.held.add(values["id"])
        try:
            while "result" not in chunk and "failure" not in chunk:
                chunk = iterate(values, chunk["iteration"])
        except Exception:  # of the database: who takes the edit up goes on from its checkpoint
            ended = False
            raise
        finally:
            runner.forget(Edit.from_json(values), ended=ended)
        return {name: value for name, value in chunk.items() if name != "progress"}

    return workflow


def status_name(operation: str) -> str:
    """DBOS's word for where it stands, "" where there is no such workflow."""
    found = DBOS.list_workflows(workflow_ids=[operation], load_input=False, load_output=False)
    return str(found[0].status) if found else ""
