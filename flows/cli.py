"""The ``nucleus`` command. Each command imports what it needs, so that help comes at once."""

from pathlib import Path
from typing import Any

import click

from nucleus_unet.errors import NucleusError


class Commands(click.Group):
    """A group whose commands end with one line and exit code 2 where the user can mend it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NucleusError as error:
            raise click.UsageError(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Nucleus segmentation: retrain, predict, and look into what was done."""
    from nucleus_unet.home import prepare_environment

    prepare_environment()


@main.command()
@click.option("--train", "training_data", multiple=True, type=click.Path(path_type=Path))
@click.option("--test", "test_data", type=click.Path(path_type=Path))
@click.option("--recipe", "recipe_name")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
def retrain(
    training_data: tuple[Path, ...],
    test_data: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
) -> None:
    from nucleus_unet.recipe import load_recipe

    recipe = load_recipe(recipe_name or "quick", overrides)
    from flows.retrain import retrain as flow

    print(flow(list(training_data), test_data, recipe))


if __name__ == "__main__":
    main()
