"""What a Prefect server is given before flows are scheduled on it: pool, automations, deployments.

It can be given again at any time: what is missing is made, what is other than wanted is changed.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

from flows.running import SKIPPED, TAG
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe
from tasks.rank import NEW_CHAMPION

POOL = "nucleus"
CHECKOUT = Path(__file__).parents[1]
LOST_S = 90
"""Three heartbeats of a flow run that do not come, as prefect.yaml sets them."""
RUNS = "prefect.flow-run"
BROKEN_OFF = "*status code* 1. *"
"""What a worker says of a run that ended outside its flow: it could not be loaded, or told no end."""
SLUG = "retrain"
NEW_DATA = "nucleus.data.changed"
"""Event after which the scheduled retraining is run at once."""


def automations() -> list[AutomationCore]:
    """Runs of our deployments that do not beat any more have crashed; what crashed is scheduled again.

    A run that was stopped by SIGTERM, as on a spot machine, has crashed as well. One that broke
    off outside its flow, as it cannot be loaded, would do so each time, and is left.
    """
    ends = {f"{RUNS}.{state}" for state in ("Completed", SKIPPED, "Failed", "Cancelled", "Crashed")}
    beat = f"{RUNS}.heartbeat"
    return [
        AutomationCore(
            name="nucleus: a run that is lost has crashed",
            description="Its machine died, or cannot be reached.",
            trigger=EventTrigger(
                after={beat},
                expect={beat, *ends},
                **_of_ours(deployed=False),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=LOST_S),
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat")],
        ),
        AutomationCore(
            name="nucleus: a run that crashed is taken up again",
            description="It goes on where it was, on a machine of its kind with the same home.",
            trigger=_on(f"{RUNS}.Crashed", **_of_ours(f"!{BROKEN_OFF}")),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED, name="AwaitingRetry", message="taken up again"
                )
            ],
        ),
    ]


def notifications(block_id: UUID) -> list[AutomationCore]:
    """Failed runs, those that broke off, and new champions are told by a notification block."""
    told = (
        (
            "a failed run",
            "With what is to be done.",
            _on(f"{RUNS}.Failed", **_of_ours()),
            "nucleus: {{ flow_run.name }} failed",
            "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
        ),
        (
            "a run that broke off",
            "Its log says why.",
            _on(f"{RUNS}.Crashed", **_of_ours(BROKEN_OFF)),
            "nucleus: {{ flow_run.name }} broke off",
            "It could not be loaded, or lost its server: see its log, mend it, and run it again.\n"
            "{{ flow_run|ui_url }}",
        ),
        (
            "a new champion",
            "One that a retraining made.",
            _on(NEW_CHAMPION),
            "nucleus: a new champion",
            "{{ event.payload.said }}\n{{ event.payload.url }}",
        ),
    )
    return [
        AutomationCore(
            name=f"nucleus: {what} is told",
            description=description,
            trigger=trigger,
            actions=[SendNotification(block_document_id=block_id, subject=subject, body=body)],
        )
        for what, description, trigger, subject, body in told
    ]


@dataclass(frozen=True)
class Schedule:
    """When to retrain, and on what; a run for which nothing changed ends at once."""

    cron: str
    """In UTC."""
    training_data: Sequence[Path]
    test_data: Path | None
    recipe: Recipe

    def in_prefect(self) -> CronSchedule:
        """As Prefect has it.

        Raises
        ------
        NucleusError
            It is no cron expression.
        """
        try:
            return CronSchedule(cron=self.cron, timezone="UTC")
        except ValueError as error:
            raise NucleusError(
                f"--cron {self.cron}: not a cron expression, which has five fields: 0 2 * * * is each "
                "night at two"
            ) from error

    def parameters(self) -> dict[str, Any]:
        """Of the flow `retrain`."""
        return {
            "training_data": [str(path) for path in self.training_data],
            "test_data": self.test_data and str(self.test_data),
            "recipe": self.recipe.model_dump(mode="json"),
            "only_if_changed": True,
        }


def set_up_server(
    schedule: Schedule | None, notify: str | None, say: Callable[[str], object]
) -> None:
    """Give the server what it lacks, change what is other, and say so.

    Without a schedule, or notifications, those that are there stay.

    Parameters
    ----------
    notify : str, optional
        The notification block of Prefect's that tells of failures and new champions, as
        ``slack-webhook/team``.

    Raises
    ------
    NucleusError
        The schedule is none, there is no such block, the work pool is of another type, or the
        deployments of ``prefect.yaml`` are refused.
    """
    if schedule:
        schedule.in_prefect()
    with get_client(sync_client=True) as client:
        try:
            if (kind := client.read_work_pool(POOL).type) != "process":
                raise NucleusError(
                    f"the work pool {POOL} is there, of type {kind}: rename or remove it"
                )
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            say(f"work pool {POOL}: made")
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
        raise NucleusError(f"the deployments of prefect.yaml are refused: {reason}")
    with get_client(sync_client=True) as client:
        for name, now in _deployed(client).items():
            there = "there" if before.get(name) == now else "changed"
            say(f"deployment {name}: {there if name in before else 'made'}")
        if schedule:
            retrain = client.read_deployment_by_name("retrain/retrain")
            wanted = _on_new_data(retrain.id, schedule)
            say(f"schedule of retrain: {_schedule(client, retrain, schedule)}")
            say(f"automation {wanted.name}: {_create_or_update(client, wanted)}")


def _deployed(client: SyncPrefectClient) -> dict[str, dict[str, object]]:
    """What decides the runs of each deployment of our pool, by its name."""
    decides = {
        *("entrypoint", "path", "pull_steps", "job_variables", "description"),
        *("parameters", "parameter_openapi_schema", "concurrency_options", "tags"),
    }
    ours = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return {
        one.name: one.model_dump(include=decides)
        | {"limit": one.global_concurrency_limit and one.global_concurrency_limit.limit}
        for one in client.read_deployments(work_pool_filter=ours)
    }


def _block_id(client: SyncPrefectClient, notify: str) -> UUID:
    kind, _, name = notify.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise NucleusError(
            f"--notify {notify}: no such block; make one on the server's page Blocks, and give its "
            "type and name: slack-webhook/team"
        ) from None
    if not block.block_schema or "notify" not in block.block_schema.capabilities:
        raise NucleusError(f"--notify {notify}: not a block for notifications")
    return block.id


def _schedule(client: SyncPrefectClient, retrain: DeploymentResponse, schedule: Schedule) -> str:
    """Make the deployment's schedule, or change it where it is another."""
    wanted = DeploymentScheduleUpdate(
        slug=SLUG,
        schedule=schedule.in_prefect(),
        active=True,
        parameters=schedule.parameters(),
    )
    there = [each for each in retrain.schedules if each.slug == SLUG]
    fields = {"schedule", "active", "parameters"}
    if there and there[0].model_dump(include=fields) == wanted.model_dump(include=fields):
        return "there"
    others = [
        DeploymentScheduleUpdate.model_validate(each, from_attributes=True)
        for each in retrain.schedules
        if each.slug != SLUG
    ]
    client.update_deployment(retrain.id, DeploymentUpdate(schedules=[*others, wanted]))
    return "changed" if there else "made"


def _on_new_data(deployment_id: UUID, schedule: Schedule) -> AutomationCore:
    return AutomationCore(
        name="nucleus: new data are trained on",
        description=f"Whoever adds data says so: prefect event emit {NEW_DATA} --resource-id data",
        trigger=_on(NEW_DATA),
        actions=[
            RunDeployment(
                source="selected", deployment_id=deployment_id, parameters=schedule.parameters()
            )
        ],
    )


def _create_or_update(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Make an automation, or change it where it is another."""
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return "made"
    if _comparable(there[0]) == _comparable(wanted):
        return "there"
    client.update_automation(there[0].id, wanted)
    return "changed"


def _on(event: str, **of: Any) -> EventTrigger:
    """Each time that an event happens."""
    return EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1, **of)


def _of_ours(message: str | None = None, *, deployed: bool = True) -> dict[str, Any]:
    """Runs with our tag; by what their state says, and of deployments alone, which can run again."""
    of_run: dict[str, str | list[str]] = {"prefect.resource.id": f"{RUNS}.*"}
    if message:
        of_run["prefect.state-message"] = message
    related = [{"prefect.resource.id": f"prefect.tag.{TAG}"}]
    if deployed:
        related.append({"prefect.resource.role": "deployment"})
    return {"match": of_run, "match_related": related}


def _comparable(automation: AutomationCore) -> dict[str, object]:
    """What was asked for, without what the server adds."""
    return automation.model_dump(
        include={"name", "description", "trigger", "actions"},
        exclude={"trigger": {"id"}},
    )
