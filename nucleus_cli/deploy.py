"""Set up a Prefect server for a team: work pool, automations, deployments and schedule.

It can be repeated at any time. What is missing is created, and what differs is updated.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    RunDeployment,
    SendNotification,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as Dates

from flows.running import SKIPPED, TAG
from nucleus_unet.errors import NucleusError
from tasks.rank import NEW_CHAMPION

POOL = "nucleus"
QUEUE = "retrain"
"""Work queue of the retrainings. Its limit is kept by states of runs, which outlive an outage."""
_OURS = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
CHECKOUT = Path(__file__).parents[1]
LOST_S = 90
"""Seconds without a heartbeat after which a flow run counts as crashed: three heartbeats."""
FOUND_S = 60
"""Seconds after which a crashed flow run is scheduled again, if it was not still running after all."""
STARTS_S = 300
"""Seconds after which a flow run counts as crashed if its worker took it but did not start it."""
RUNS = "prefect.flow-run"
EXITED = "*status code* 1. *"
"""How a worker reports a run that ended outside its flow, for example because it cannot be loaded."""
SLUG = "retrain"
NEW_DATA = "nucleus.data.changed"
"""Event that starts the scheduled retraining at once."""


def automations() -> list[AutomationCore]:
    """Mark flow runs that do not start or send no heartbeats as crashed, and schedule them again.

    A flow run that SIGTERM stopped, for example on a spot machine, has crashed too. A flow run that
    ended outside its flow would do so each time, so it is not scheduled again.
    """
    ends = {f"{RUNS}.{state}" for state in ("Completed", SKIPPED, "Failed", "Cancelled", "Crashed")}
    pending, running, beat = (f"{RUNS}.{event}" for event in ("Pending", "Running", "heartbeat"))
    crashed = ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat")
    return [
        AutomationCore(
            name="nucleus: mark runs that do not start as crashed",
            description="The worker that took the run has died.",
            trigger=_missing({running, *ends}, pending, STARTS_S, **_of_ours()),
            actions=[crashed],
        ),
        AutomationCore(
            name="nucleus: mark lost runs as crashed",
            description="The machine of the run died or cannot be reached.",
            trigger=_missing({beat, *ends}, beat, LOST_S, **_of_ours(deployed=False)),
            actions=[crashed],
        ),
        AutomationCore(
            name="nucleus: retry crashed runs",
            description="The run continues on a machine of the same kind with the same home.",
            trigger=_missing(
                {running, *ends} - {f"{RUNS}.Crashed"},
                f"{RUNS}.Crashed",
                FOUND_S,
                **_of_ours(f"!{EXITED}"),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED, name="AwaitingRetry", message="retried after a crash"
                )
            ],
        ),
    ]


def notifications(block_id: UUID) -> list[AutomationCore]:
    """Send failed runs, runs that ended unexpectedly and new champions to a notification block."""
    told = (
        (
            "notify of failed runs",
            "The message says why the run failed and what to do.",
            _on(f"{RUNS}.Failed", **_of_ours()),
            "nucleus: {{ flow_run.name }} failed",
            "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
        ),
        (
            "notify of runs that ended unexpectedly",
            "The log of the run says why.",
            _on(f"{RUNS}.Crashed", **_of_ours(EXITED)),
            "nucleus: {{ flow_run.name }} ended unexpectedly",
            "The run could not be loaded or lost its server. Read its log and fix the cause.\n"
            "{{ flow_run|ui_url }}",
        ),
        (
            "notify of new champions",
            "A retraining made a model that is better than the champion.",
            _on(NEW_CHAMPION),
            "nucleus: a new champion",
            "{{ event.payload.said }}\n{{ event.payload.url }}",
        ),
    )
    return [
        AutomationCore(
            name=f"nucleus: {what}",
            description=description,
            trigger=trigger,
            actions=[SendNotification(block_document_id=block_id, subject=subject, body=body)],
        )
        for what, description, trigger, subject, body in told
    ]


def parse_cron(cron: str) -> CronSchedule:
    """A cron expression, in UTC, as Prefect's schedule.

    Raises
    ------
    NucleusError
        If it is not a cron expression of five fields, or if none of its dates ever comes.
    """
    advice = "0 2 * * * means each night at two."
    try:
        schedule = CronSchedule(cron=cron, timezone="UTC")
    except ValueError:
        schedule = None
    if schedule is None or (len(cron.split()) != 5 and not cron.startswith("@")):
        raise NucleusError(f"--cron {cron} is not a cron expression of five fields. {advice}")
    try:
        asyncio.run(Dates(cron=cron, timezone="UTC").get_dates(1))
    except ValueError as error:
        raise NucleusError(f"--cron {cron} is a date that never comes. {advice}") from error
    return schedule


def set_up_server(
    schedule: CronSchedule | None,
    parameters: Mapping[str, Any] | None,
    notify: str | None,
    say: Callable[[str], object],
) -> None:
    """Create what the server lacks, update what differs, and report each item.

    Parameters
    ----------
    schedule : CronSchedule, optional
        When to retrain. Without it, an existing schedule stays.
    parameters : mapping, optional
        Parameters of the flow `retrain`, which become the defaults of its form. Without them, existing
        defaults stay.
    notify : str, optional
        Type and name of a notification block in Prefect, for example ``slack-webhook/team``. Without it,
        existing notifications stay.
    say : callable
        Takes one line for each item.

    Raises
    ------
    NucleusError
        If the block is wrong, if the work pool has another type, or if the server refuses the
        deployments of ``prefect.yaml``.
    """
    with get_client(sync_client=True) as client:
        try:
            if (kind := client.read_work_pool(POOL).type) != "process":
                raise NucleusError(
                    f"The work pool {POOL} exists with the type {kind} instead of process. Delete it in "
                    "Prefect, or use another server."
                )
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            say(f"work pool {POOL}: created")
        try:
            client.read_work_queue_by_name(QUEUE, POOL)
        except ObjectNotFound:
            client.create_work_queue(QUEUE, concurrency_limit=1, work_pool_name=POOL)
            say(f"work queue {QUEUE}: created, one run at a time")
        told = notifications(_block_id(client, notify)) if notify else []
        for wanted in [*automations(), *told]:
            say(f"automation {wanted.name}: {_create_or_update(client, wanted)}")
        before = _deployed(client)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = " ".join(done.stdout.split())[-1000:]
        raise NucleusError(f"The server refuses the deployments of prefect.yaml: {reason}")
    with get_client(sync_client=True) as client:
        kept = before.get("retrain", {}).get("parameters")
        retrain = client.read_deployment_by_name("retrain/retrain")
        # Deploying reset the defaults of the form to those of prefect.yaml.
        if defaults := parameters or kept:
            client.update_deployment(retrain.id, DeploymentUpdate(parameters=defaults))
        for one in client.read_deployments(work_pool_filter=_OURS):
            if before.get(one.name, {}).get("paused"):  # deploying went on with it
                client.update_deployment(one.id, DeploymentUpdate(paused=True))
        for name, now in _deployed(client).items():
            known = "unchanged" if before.get(name) == now else "updated"
            say(f"deployment {name}: {known if name in before else 'created'}")
        if schedule:
            say(f"schedule of retrain: {_schedule(client, retrain, schedule)}")
            wanted = AutomationCore(
                name="nucleus: retrain on new data",
                description=f"After adding data: prefect event emit {NEW_DATA} --resource-id data",
                trigger=_on(NEW_DATA),
                actions=[RunDeployment(source="selected", deployment_id=retrain.id)],
            )
            say(f"automation {wanted.name}: {_create_or_update(client, wanted)}")


def _deployed(client: SyncPrefectClient) -> dict[str, dict[str, object]]:
    """For each deployment in our pool, by name: everything that decides its runs."""
    decides = {
        *("entrypoint", "path", "pull_steps", "job_variables", "description"),
        *("parameters", "parameter_openapi_schema", "work_queue_name", "tags", "paused"),
    }
    deployments = client.read_deployments(work_pool_filter=_OURS)
    return {one.name: one.model_dump(include=decides) for one in deployments}


def _block_id(client: SyncPrefectClient, notify: str) -> UUID:
    kind, _, name = notify.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise NucleusError(
            f"--notify {notify}: the Prefect server has no such block. Create one on its page Blocks "
            "and give its type and name, for example slack-webhook/team."
        ) from None
    if not block.block_schema or "notify" not in block.block_schema.capabilities:
        raise NucleusError(
            f"--notify {notify}: this block sends no notifications. Choose one that does."
        )
    return block.id


def _schedule(
    client: SyncPrefectClient, retrain: DeploymentResponse, schedule: CronSchedule
) -> str:
    """Create or update the schedule of a deployment; returns what was done."""
    there = [each for each in retrain.schedules if each.slug == SLUG]
    active = there[0].active if there else True  # one that somebody paused stays paused
    wanted = DeploymentScheduleUpdate(slug=SLUG, schedule=schedule, active=active)
    fields = {"schedule", "active"}
    if there and there[0].model_dump(include=fields) == wanted.model_dump(include=fields):
        return "unchanged" if active else "unchanged, paused"
    others = [
        DeploymentScheduleUpdate.model_validate(each, from_attributes=True)
        for each in retrain.schedules
        if each.slug != SLUG
    ]
    client.update_deployment(retrain.id, DeploymentUpdate(schedules=[*others, wanted]))
    return "updated" if there else "created"


def _create_or_update(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Create or update an automation; returns what was done."""
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return "created"
    if _comparable(there[0]) == _comparable(wanted):
        return "unchanged"
    client.update_automation(there[0].id, wanted)
    return "updated"


def _on(event: str, **of: Any) -> EventTrigger:
    """A trigger that fires each time an event happens."""
    return EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1, **of)


def _missing(events: set[str], after: str, within_s: float, **of: Any) -> EventTrigger:
    """A trigger that fires if, some seconds after an event, none of others has happened."""
    return EventTrigger(
        after={after},
        expect=events,
        **of,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )


def _of_ours(message: str | None = None, *, deployed: bool = True) -> dict[str, Any]:
    """Flow runs with our tag, by the message of their state; by default only those of deployments."""
    of_run: dict[str, str | list[str]] = {"prefect.resource.id": f"{RUNS}.*"}
    if message:
        of_run["prefect.state-message"] = message
    related = [{"prefect.resource.id": f"prefect.tag.{TAG}"}]
    if deployed:
        related.append({"prefect.resource.role": "deployment"})
    return {"match": of_run, "match_related": related}


def _comparable(automation: AutomationCore) -> dict[str, object]:
    """An automation without what the server adds."""
    return automation.model_dump(
        include={"name", "description", "trigger", "actions"},
        exclude={"trigger": {"id"}},
    )
