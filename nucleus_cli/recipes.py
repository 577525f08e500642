"""Commands about recipes: list, show and diff."""

import click

from nucleus_cli.completion import complete_recipe
from nucleus_cli.options import overrides_option
from nucleus_cli.starting import print_table


@click.group()
def recipe() -> None:
    """List, show and compare recipes. A recipe holds every choice of a training."""


@recipe.command("list")
def recipe_list() -> None:
    """List the recipes that come with the package."""
    from nucleus_unet.recipe import load_recipe, recipe_names

    for name in recipe_names():
        chosen = load_recipe(name)
        network, training = chosen.network, chosen.training
        steps = training.epochs * training.steps_per_epoch
        click.echo(
            f"{name:8} {chosen.data.image_size} px, U-Net with {network.padding} padding, depth "
            f"{network.depth} and {network.base_filters} filters, {training.optimizer}, {steps} steps "
            f"of {training.batch_size} images"
        )


@recipe.command("show")
@click.argument("name", shell_complete=complete_recipe)
@overrides_option
def recipe_show(name: str, overrides: tuple[str, ...]) -> None:
    """Show every value of a recipe, as --set spells it, and what it means."""
    from nucleus_unet.recipe import key_descriptions, load_recipe

    values = {key: str(value) for key, value in load_recipe(name, overrides).flat().items()}
    width = max(map(len, values.values()))
    meant = key_descriptions()
    print_table([(key, f"{v:{width}}  {meant.get(key, '')}".rstrip()) for key, v in values.items()])


@recipe.command("diff")
@click.argument("a", shell_complete=complete_recipe)
@click.argument("b", shell_complete=complete_recipe)
def recipe_diff(a: str, b: str) -> None:
    """Show the values in which two recipes differ."""
    from nucleus_unet.recipe import load_recipe, recipe_differences

    rows = recipe_differences(load_recipe(a), load_recipe(b))
    print_table([(key, f"{left} → {right}") for key, left, right in rows])
    if not rows:
        click.echo("The recipes are the same.")
