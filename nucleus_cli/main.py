"""The ``nucleus`` command. It imports a command only when it is used, so that help comes at once."""

import keyword
import pkgutil
from typing import Any

import click

from nucleus_cli import completion as completion  # registers our completion for bash

COMMANDS = {
    "retrain": "training",
    "predict": "prediction",
    "reproduce": "training",
    "runs": "models",
    "models": "models",
    "diff": "models",
    "export": "models",
    "suspect": "models",
    "suggest": "prediction",
    "score": "prediction",
    "check": "datasets",
    "fetch": "datasets",
    "import": "datasets",
    "recipe": "recipes",
    "sweep": "training",
    "promote": "models",
    "rollback": "models",
    "clean": "upkeep",
    "backup": "upkeep",
    "doctor": "upkeep",
    "ui": "services",
    "deploy": "services",
    "worker": "services",
}
"""Each command, and the module of this package that defines it, as ``import_`` if it is a keyword."""


class _Refusal(click.ClickException):
    exit_code = 2


class _Stopped(click.ClickException):
    """Ctrl-C or SIGTERM. Shells expect exit code 130 after Ctrl-C."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        click.echo(self.format_message(), err=True)


class LazyGroup(click.Group):
    """The commands of `COMMANDS`. An error that the user can fix ends with one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        found = pkgutil.resolve_name(f"nucleus_cli.{COMMANDS[cmd_name]}:{name}")
        return found if isinstance(found, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        for_a_shell = "--in-env" in ctx.args
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if for_a_shell:  # the shell that reads our output would find nothing to do and succeed
                click.echo("exit 2")
            kind = f"{type(error).__module__}.{type(error).__name__}"
            if kind == "prefect.exceptions.Abort":
                raise _Stopped(str(error)) from error
            # Prefect turns SIGTERM into an exception of its own.
            if (
                isinstance(error, KeyboardInterrupt)
                or kind == "prefect.exceptions.TerminationSignal"
            ):
                raise _Stopped("Stopped. Run the same command again to continue.") from error
            from nucleus_unet.engine import explained

            if fault := explained(error):
                raise _Refusal(str(fault)) from error
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nucleus-unet")
def main() -> None:
    """Find cell nuclei in microscope images with a U-Net: train, predict, compare and reproduce.

    Everything is kept in the folder NUCLEUS_HOME (default: .nucleus in the working directory). To use
    servers of a team, set PREFECT_API_URL and MLFLOW_TRACKING_URI.
    """


if __name__ == "__main__":
    main()
