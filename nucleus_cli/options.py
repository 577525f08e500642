"""Options that several commands have."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nucleus_cli.completion import complete_key, complete_recipe
from nucleus_unet.errors import UNPRINTABLE

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class PrintablePath(click.Path):
    """A path that can be written to logs and records."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if UNPRINTABLE.search(os.fspath(value)):
            self.fail(f"{os.fspath(value)!r} cannot be printed. Rename it.", param, ctx)
        if re.match(r"[a-z][a-z0-9+.-]*://", os.fspath(value), re.IGNORECASE):
            self.fail(
                f"{os.fspath(value)} is an address. Download or mount the data, and give a path.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


PATH = PrintablePath(path_type=Path, readable=False)  # the library reports what it cannot read


def training_option(help: str, **more: Any) -> Decorator:
    """The option ``--train``, which may be given several times."""
    return click.option("--train", "training_data", type=PATH, multiple=True, help=help, **more)


test_option = click.option(
    "--test", "test_data", type=PATH, help="Images to predict for the submission."
)
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_key,
    help="Change a value of the recipe. nucleus recipe show NAME lists the keys. May be repeated.",
)


ignore_value_option = click.option(
    "--ignore-value",
    type=click.IntRange(1),
    metavar="N",
    help="Value in label images of pixels that nobody annotated.",
)


def plane_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose a plane of stacks; the command gets them as one `Plane`."""

    @functools.wraps(command)
    def with_plane(
        *, channel: str | None, z: str | None, time: int | None, scene: str | None, **others: Any
    ) -> None:
        from nucleus_unet.recipe import data_overrides, load_recipe

        chosen = data_overrides(channel=channel, z=z, time=time, scene=scene)
        command(plane=load_recipe("best", chosen).data.plane, **others)

    wrapped: Callable[..., None] = with_plane
    for option in (
        click.option(
            "--scene",
            metavar="NAME|N",
            help="If the files hold several images (scenes, series, positions): the name, or the "
            "number, from 1.",
        ),
        click.option(
            "--time",
            type=click.IntRange(1),
            help="If the images are time series: the number, from 1.",
        ),
        click.option(
            "--z",
            metavar="max|middle|N",
            help="If the images have several z planes: the largest value of all, the plane in the "
            "middle, or a number, from 1.",
        ),
        click.option(
            "--channel",
            metavar="NAME|N",
            help="If the images have several channels: the name, such as DAPI, or the number, from 1.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def recipe_options(default: str = "best") -> Decorator:
    """The options that choose a recipe."""
    named = click.option(
        "--recipe",
        "recipe_name",
        metavar="NAME|FILE",
        shell_complete=complete_recipe,
        help=f"A recipe by name (nucleus recipe list), or a TOML file. Default: {default}.",
    )
    return lambda command: named(overrides_option(command))


def recipe_parameters(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """A recipe as the parameters of a flow: by name or as a file, with its changes."""
    chosen = {"recipe_file": Path(name).absolute()} if name.endswith(".toml") else {"recipe": name}
    return {**chosen, "overrides": list(overrides)}
