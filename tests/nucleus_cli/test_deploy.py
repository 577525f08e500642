"""What a server is given, and what it then does by itself."""

import re
import subprocess
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nucleus_unet.errors import NucleusError

CHECKOUT = Path(__file__).parents[2]
OURS = ["tag.nucleus-unet", "deployment.1"]
OTHER = ["tag.other", "deployment.1"]


def test_prefect_yaml_and_the_code_say_the_same() -> None:
    from flows.running import TAG
    from nucleus_cli.deploy import LOST_S, POOL, QUEUE

    deployments = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
    assert deployments[0]["work_pool"]["work_queue_name"] == QUEUE
    for deployment in deployments:
        assert deployment["work_pool"]["name"] == POOL
        assert deployment["tags"] == [TAG]
        beat_s = deployment["work_pool"]["job_variables"]["env"][
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
        ]
        assert 3 * int(beat_s) == LOST_S


def test_an_automation_is_the_same_in_whatever_order_its_events_are_named() -> None:
    from prefect.automations import Automation

    from nucleus_cli.deploy import _comparable, automations

    for wanted in automations():
        served = wanted.model_dump(mode="json") | {"id": str(uuid.uuid4())}
        served["trigger"]["expect"].reverse()
        assert _comparable(Automation.model_validate(served)) == _comparable(wanted)
        served["trigger"]["expect"].pop()
        assert _comparable(Automation.model_validate(served)) != _comparable(wanted)


@pytest.mark.parametrize(
    ("event", "message", "related", "does"),
    [
        ("heartbeat", None, OURS, {"mark lost runs as crashed"}),
        ("heartbeat", None, OTHER, set()),
        ("Pending", None, OURS, {"mark runs that do not start as crashed"}),
        ("Crashed", "no heartbeat", OURS, {"retry crashed runs"}),
        (
            "Crashed",
            "Process exited with status code: -9. It was killed.",
            [*OURS, "tag.a"],
            {"retry crashed runs"},
        ),
        (
            "Crashed",
            "Process exited with status code: 1. It caught an error.",
            OURS,
            {"notify of runs that ended unexpectedly"},
        ),
        ("Crashed", "no heartbeat", [], set()),  # of a shell, or of somebody else
        ("Failed", "no data", OURS, {"notify of failed runs"}),
        ("Failed", "no data", OTHER, set()),
        ("heartbeat", None, OURS[:1], {"mark lost runs as crashed"}),  # a trial of a sweep
        ("Failed", "it diverged", OURS[:1], set()),
    ],
)
def test_what_is_done_about_a_run(
    event: str, message: str | None, related: list[str], does: set[str]
) -> None:
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import RelatedResource, Resource

    from nucleus_cli.deploy import automations, notifications

    resource = Resource({"prefect.resource.id": f"prefect.flow-run.{uuid.uuid4()}"})
    if message:
        resource = Resource(resource.root | {"prefect.state-message": message})
    resources = [
        RelatedResource(
            {"prefect.resource.id": f"prefect.{one}", "prefect.resource.role": one.split(".")[0]}
        )
        for one in related
    ]
    found = set()
    for one in [*automations(), *notifications(uuid.uuid4())]:
        trigger = EventTrigger.model_validate(one.trigger.model_dump(mode="json"))
        begins = f"prefect.flow-run.{event}" in (trigger.after or trigger.expect)
        if begins and trigger.covers_resources(resource, resources):
            found.add(one.name.removeprefix("nucleus: "))
    assert found == does


def die(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and all that it started at once, as a machine that loses power does."""
    for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(True)]:
        process.kill()
    worker.wait()


@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "a worker's machine loses power",
    "another worker continues the run",
)
def test_a_run_whose_machine_died_is_taken_up_by_another(team: Any) -> None:
    from mlflow import MlflowClient

    done = team.place.nucleus("deploy", **team.urls)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": created") == 2 + 3 + 4
    again = team.place.nucleus("deploy", **team.urls)
    assert again.stdout.count(": unchanged") == 3 + 4
    assert len(again.stdout.splitlines()) == 7
    team.schedule_training("training.epochs=40", "training.steps_per_epoch=5")
    client = MlflowClient(tracking_uri=team.urls["MLFLOW_TRACKING_URI"])

    def mlflow_runs() -> list[Any]:
        experiment = client.get_experiment_by_name("nucleus-unet")
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    first = team.work()
    team.wait(lambda: any("by epoch/loss" in run.data.metrics for run in mlflow_runs()))
    die(first)
    team.work()
    team.wait(lambda: team.runs()[0]["state_name"] == "Completed")
    [flow_run] = [run for run in team.runs() if run["deployment_id"]]
    assert flow_run["run_count"] == 2
    [run] = mlflow_runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["attempt"] == "2"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "by epoch/loss")]
    assert steps == [*range(1, 41)]


@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "a worker dies after it took a run and before the run starts",
    "the run is crashed after five minutes; another worker takes it up",
)
def test_a_run_that_was_taken_and_never_started_is_taken_up_by_another(team: Any) -> None:
    assert team.place.nucleus("deploy", **team.urls).returncode == 0
    [waits] = [one for one in team.post("automations/filter", {}) if "not start" in one["name"]]
    waits["trigger"]["within"] = 15.0  # less patience
    fields = ("name", "description", "enabled", "trigger", "actions")
    team.put(f"automations/{waits['id']}", {field: waits[field] for field in fields})
    images, out = [str(team.place.test)], str(team.folder / "masks")
    run_id = team.schedule("predict", images=images, out=out)
    taken = {"state": {"type": "PENDING", "name": "Pending"}}
    team.post(f"flow_runs/{run_id}/set_state", taken)  # as a worker does that dies at once
    team.work()
    team.wait(lambda: team.get(f"flow_runs/{run_id}")["state_name"] == "Completed")
    states = team.get(f"flow_run_states/?flow_run_id={run_id}")
    names = [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]
    assert names[:4] == ["Scheduled", "Pending", "Crashed", "AwaitingRetry"]
    assert names[-2:] == ["Running", "Completed"]


@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "a flow that cannot be loaded",
    "the run is Crashed and is not tried again and again",
)
def test_a_run_whose_flow_cannot_be_loaded_is_left_crashed(team: Any) -> None:
    assert team.place.nucleus("deploy", **team.urls).returncode == 0
    run_id = team.schedule("predict", images=["nowhere"], out="nowhere")
    team.urls["NUCLEUS_TASK_RUNNER"] = "misspelt"
    team.work()
    team.wait(lambda: team.get(f"flow_runs/{run_id}")["state_name"] == "Crashed")
    time.sleep(20)  # time in which it would be retried
    states = team.get(f"flow_run_states/?flow_run_id={run_id}")
    assert [s["name"] for s in states if s["type"] in ("CRASHED", "SCHEDULED")] == [
        "Scheduled",
        "Crashed",
    ]


@pytest.mark.slow
@pytest.mark.fault(
    "Servers and workers",
    "deploying again after somebody paused a schedule or deployment",
    "it stays paused",
)
def test_retraining_by_schedule_and_by_event_skips_where_nothing_changed(team: Any) -> None:
    arguments = ["deploy", *team.place.retraining()[1:], "--cron"]
    done = team.place.nucleus(*arguments, "0 2 * * *", **team.urls)
    assert done.returncode == 0, done.stderr
    created = ["schedule of retrain: created", "automation nucleus: retrain on new data: created"]
    assert done.stdout.splitlines()[-2:] == created
    predict = team.get("deployments/name/predict/predict")["id"]
    team.post(f"deployments/{predict}/pause_deployment", {})
    again = team.place.nucleus(*arguments, "0 2 * * *", **team.urls)
    assert all(line.endswith(": unchanged") for line in again.stdout.splitlines())
    assert team.get(f"deployments/{predict}")["paused"]
    deployed = team.get("deployments/name/retrain/retrain")
    assert deployed["parameters"]["training_data"] == [str(team.place.train)]  # the form's defaults
    without_schedule = team.place.nucleus("deploy", **team.urls)
    assert without_schedule.stdout.count(": unchanged") == len(without_schedule.stdout.splitlines())
    team.wait(lambda: len(team.runs()) > 2)  # the scheduler's
    for run in team.runs():
        assert run["state_name"] == "Scheduled"
        assert run["parameters"]["training_data"] == [str(team.place.train)]
        assert datetime.fromisoformat(run["expected_start_time"]).hour == 2
    by_hand = {"schedule": {"cron": "0 5 * * 1"}, "active": False}
    team.post(f"deployments/{deployed['id']}/schedules", [by_hand])
    changed = team.place.nucleus(*arguments, "0 3 * * *", **team.urls)
    assert "schedule of retrain: updated" in changed.stdout
    schedules = team.get(f"deployments/{deployed['id']}/schedules")
    found = {(one["schedule"]["cron"], one["active"]) for one in schedules}
    assert found == {("0 3 * * *", True), ("0 5 * * 1", False)}

    def by_event() -> list[dict[str, Any]]:
        return [run for run in team.runs() if run["created_by"]["type"] == "AUTOMATION"]

    team.work()
    emit = ("event", "emit", "nucleus.data.changed", "--resource-id", "data")
    assert team.start("prefect", *emit).wait() == 0
    team.wait(lambda: [run["state_name"] for run in by_event()] == ["Completed"])
    assert team.start("prefect", *emit).wait() == 0
    team.wait(lambda: sorted(r["state_name"] for r in by_event()) == ["Completed", "Skipped"])
    [skipped] = [run for run in by_event() if run["state_name"] == "Skipped"]
    message = skipped["state"]["message"]
    assert message.startswith("nothing changed since http")
    assert message.endswith(": data, recipe, source and packages")


@pytest.mark.slow
def test_a_pool_of_another_type_is_left_alone(team: Any) -> None:
    team.post("work_pools/", {"name": "nucleus", "type": "docker"})
    done = team.place.nucleus("deploy", **team.urls)
    assert done.returncode == 2
    assert "The work pool nucleus exists with the type docker instead of process." in done.stderr


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("daily", "is not a cron expression of five fields"),
        ("0 0 2 * * *", "is not a cron expression of five fields"),
        ("0 0 30 2 *", "is a date that never comes"),
    ],
)
def test_a_schedule_that_is_none_is_refused(cron: str, message: str) -> None:
    from nucleus_cli.deploy import parse_cron

    with pytest.raises(NucleusError, match=re.escape(f"--cron {cron} {message}")):
        parse_cron(cron)


@pytest.mark.parametrize("cron", ["0 2 * * *", "@daily", "0 0 29 2 *"])
def test_a_schedule(cron: str) -> None:
    from nucleus_cli.deploy import parse_cron

    assert parse_cron(cron).cron == cron
