"""What the shell offers when TAB is pressed. It imports nothing slow."""

from collections.abc import Iterable
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class


@add_completion_class
class BashWithKeys(BashComplete):
    """Add no space after ``KEY=``: the value comes next."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0\n"
    )


def complete_recipe(ctx: Any, param: Any, incomplete: str) -> list[CompletionItem[str]]:
    """Names of recipes; files if no name begins like this."""
    from nucleus_unet.recipe import recipe_names

    names = _beginning(recipe_names(), incomplete)
    return names or [CompletionItem(incomplete, type="file")]


def complete_key(ctx: Any, param: Any, incomplete: str) -> list[CompletionItem[str]]:
    """Keys of a recipe, each followed by ``=``."""
    from nucleus_unet.recipe import key_descriptions

    return _beginning((f"{key}=" for key in key_descriptions()), incomplete)


def complete_model(ctx: Any, param: Any, incomplete: str) -> list[CompletionItem[str]]:
    """The models that have a name."""
    return _beginning(("champion", "builtin"), incomplete)


def _beginning(values: Iterable[str], incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]
