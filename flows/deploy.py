"""What a Prefect server is given before flows are scheduled on it: pool, automations, deployments.

It can be given again at any time; what is there already stays as it is.
"""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from nucleus_unet.errors import NucleusError

POOL = "gpu"
CHECKOUT = Path(__file__).parents[1]
LOST_S = 90
"""Three heartbeats of a flow run that do not come, as prefect.yaml sets them."""
RUNS = "prefect.flow-run"


def automations() -> list[AutomationCore]:
    """Runs that do not beat any more have crashed; those of deployments are scheduled again.

    A run that was stopped by SIGTERM, as on a spot machine, has crashed as well.
    """
    ends = {f"{RUNS}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    beat = f"{RUNS}.heartbeat"
    return [
        AutomationCore(
            name="nucleus: a run that is lost has crashed",
            description="Its machine died, or cannot be reached.",
            trigger=EventTrigger(
                after={beat},
                expect={beat, *ends},
                match=ResourceSpecification({"prefect.resource.id": f"{RUNS}.*"}),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=LOST_S),
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat")],
        ),
        AutomationCore(
            name="nucleus: a run that crashed is taken up again",
            description="It goes on where it was, on any machine with the same home.",
            trigger=EventTrigger(
                expect={f"{RUNS}.Crashed"},
                match=ResourceSpecification({"prefect.resource.id": f"{RUNS}.*"}),
                match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED, name="AwaitingRetry", message="taken up again"
                )
            ],
        ),
    ]


def deploy(say: Callable[[str], object]) -> None:
    """Give the server what it lacks, and say what that was.

    Raises
    ------
    NucleusError
        The deployments of ``prefect.yaml`` are refused.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            say(f"work pool {POOL}: made")
        for wanted in automations():
            say(f"automation {wanted.name}: {_give(client, wanted)}")
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
    say("deployments of prefect.yaml: given")


def _give(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Make an automation, or change it where it is another."""
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return "made"
    if _asked(there[0]) == _asked(wanted):
        return "there"
    client.update_automation(there[0].id, wanted)
    return "changed"


def _asked(automation: AutomationCore) -> dict[str, object]:
    """What was asked for, without what the server adds."""
    return automation.model_dump(
        mode="json",
        include={"name", "description", "trigger", "actions"},
        exclude={"trigger": {"id"}},
    )
