"""Commands about servers: ui, deploy and worker."""

import os
from pathlib import Path

import click

from nucleus_cli.options import recipe_options, recipe_parameters, test_option, training_option
from nucleus_unet import engine
from nucleus_unet.errors import NucleusError

NIGHTLY = "0 2 * * *"


@click.command()
@click.argument("run_id", required=False)
def ui(run_id: str | None) -> None:
    """Serve the pages of Prefect and MLflow on this machine until Ctrl-C.

    With RUN_ID, print where that run is in both.
    """
    engine.prepare_environment()
    engine.check_servers()
    click.echo("Starting Prefect and MLflow ...", err=True)
    from nucleus_cli.ui import serve_uis

    serve_uis(run_id, click.echo)


@click.command()
@training_option(
    "Annotated images that scheduled runs train on. May be repeated. Without it, the schedule stays."
)
@test_option
@recipe_options()
@click.option("--cron", help=f"When to retrain, in UTC. Default: {NIGHTLY}, each night at two.")
@click.option(
    "--notify",
    metavar="TYPE/NAME",
    help="Send failures and new champions to this notification block of Prefect, for example "
    "slack-webhook/team. Without it, the notifications stay.",
)
def deploy(
    training_data: tuple[Path, ...],
    test_data: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    cron: str | None,
    notify: str | None,
) -> None:
    """Set up the Prefect server at PREFECT_API_URL for scheduled runs. May be repeated.

    A scheduled run ends at once if nothing has changed. The event nucleus.data.changed starts a run too.
    """
    _require_server("sets up a Prefect server")
    if (test_data or recipe_name or overrides or cron) and not training_data:
        raise NucleusError(
            "--test, --recipe, --set and --cron describe a schedule, which needs data. Give --train too."
        )
    engine.check_servers()  # Prefect cannot be imported if the address of its server is wrong
    from flows.running import require_prefect
    from nucleus_cli.deploy import parse_cron, set_up_server
    from nucleus_unet.recipe import load_recipe

    require_prefect()
    schedule = parameters = None
    if training_data:
        name = recipe_name or "best"
        load_recipe(name, overrides)  # refuses a bad recipe at once
        paths = [path.absolute() for path in training_data]
        for path in (*paths, *([test_data] if test_data else [])):
            if not os.path.exists(path):
                click.echo(f"{path} is not on this machine. The worker must have it.", err=True)
        schedule = parse_cron(cron or NIGHTLY)
        parameters = recipe_parameters(name, overrides)
        parameters |= {"training_data": paths, "test_data": test_data and test_data.absolute()}
    set_up_server(schedule, parameters, notify, click.echo)


@click.command()
def worker() -> None:
    """Do the runs that the Prefect server at PREFECT_API_URL schedules, one at a time, until Ctrl-C."""
    _require_server("does the work of a Prefect server")
    from nucleus_cli.worker import serve_runs

    serve_runs(click.echo)


def _require_server(does: str) -> None:
    """Settle the environment of a command that needs a server of its own choice."""
    engine.prepare_environment()
    if "PREFECT_API_URL" not in os.environ:
        command = click.get_current_context().info_name
        raise NucleusError(
            f"nucleus {command} {does}. Start one and set PREFECT_API_URL to its address."
        )
