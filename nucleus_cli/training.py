"""Commands that train: retrain, reproduce and sweep."""

import itertools
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nucleus_cli.completion import complete_key
from nucleus_cli.options import (
    PATH,
    ignore_value_option,
    plane_options,
    recipe_options,
    recipe_parameters,
    test_option,
    training_option,
)
from nucleus_cli.starting import (
    find_mlflow,
    print_table,
    printed_submission,
    read_data,
    run_rows,
    start,
    typed_command,
)
from nucleus_unet import runs
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import make_folder, write_atomically, writing

if TYPE_CHECKING:
    from nucleus_unet.recipe import Plane

PLACES = {
    "champion": "the champion: nucleus predict uses it",
    "challenger": "the challenger: nucleus promote {} --why TEXT makes it the champion",
    "copy": "a copy of the champion, which nucleus predict uses",
}


@click.command()
@training_option(
    "Annotated images: a folder or zip. May be repeated. Default: the built-in sample."
)
@test_option
@recipe_options("best; quick for the built-in sample")
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip", "accept"]),
    help="What to do if an annotation cannot be right: refuse the data (default), leave the image out, "
    "or read it anyway. Short for --set data.on_bad=...",
)
@ignore_value_option
@plane_options
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    help="Train this many networks, so that every image is validated by one that does not know it. "
    "Short for --set training.folds=...",
)
@click.option(
    "--registry/--no-registry",
    default=True,
    help="Register the model, and make it the champion if it is better than the champion. Default.",
)
def retrain(
    training_data: tuple[Path, ...],
    test_data: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    on_bad: str | None,
    ignore_value: int | None,
    plane: "Plane",
    folds: int | None,
    registry: bool,
) -> None:
    """Train a model on annotated images, score it, and predict the test images."""
    from nucleus_unet.recipe import data_overrides, load_recipe

    if test_data and not training_data:
        raise NucleusError(
            "--test needs --train, because the built-in sample has test images of its own. Give "
            "--train too."
        )
    name = recipe_name or ("best" if training_data else "quick")
    chosen = data_overrides(on_bad=on_bad, ignore_value=ignore_value, **plane._asdict())
    by_fold = (f"training.folds={folds}",) if folds else ()
    overrides = (*overrides, *chosen, *by_fold)
    plane = load_recipe(name, overrides).data.plane  # refuses a bad recipe at once
    read_data(training_data, plane, annotated=True)
    read_data([test_data] if test_data else [], plane)
    start()
    from flows.retrain import Retrained
    from flows.retrain import retrain as flow

    parameters = recipe_parameters(name, overrides)
    made = flow(training_data, test_data, registry=registry, **parameters)
    assert isinstance(made, Retrained)  # only a scheduled run is skipped
    click.echo("\nThe training has finished.")
    rows = [
        (f"validation {key}", str(round(value, 4)))
        for key, value in made.scores.items()
        if not key.startswith(("AP at", "F1 at", "lost by"))  # MLflow's pages show them
    ]
    if made.submission:
        rows += printed_submission(made.submission)
    if registry:
        tags = runs.require_run(made.run.id)
        number, place = tags["model.version"], tags["model.place"]
        rows += [("model", f"version {number}, {PLACES[place].format(number)}")]
        rows += [("verdict", tags["model.verdict"])]
    rows += [
        (f"{name} images", str(made.pictures / f"validation_{name}.png"))
        for name in ("worst", "best")
    ]
    use = f"{typed_command()} predict IMAGES --out FOLDER --model {made.run.id}"
    print_table([*rows, *run_rows(made.run.id), ("to use the model, type", use)])


@click.command()
@click.argument("run_id")
@click.option("--retrain", is_flag=True, help="Train the model again from the raw data.")
@training_option("Where the training data of the run are now, if they were moved.")
@click.option(
    "--test",
    "test_data",
    type=PATH,
    multiple=True,
    help="Where the test images of the run are now, if they were moved.",
)
@click.option(
    "--in-env",
    is_flag=True,
    help="Print a shell script that does this with the source, packages and switches of the run. "
    "Pipe it to sh.",
)
@click.option(
    "--yes", is_flag=True, help="Print the script without asking whether its code is trusted."
)
def reproduce(
    run_id: str,
    retrain: bool,
    training_data: tuple[Path, ...],
    test_data: tuple[Path, ...],
    in_env: bool,
    yes: bool,
) -> None:
    """Make the submission of run RUN_ID again and compare the two.

    The exit code is 0 if they are identical, 1 if they differ and 2 if they could not be compared.
    """
    if training_data and not retrain:
        raise NucleusError(
            "--train needs --retrain, because the logged model needs no training data. Add --retrain, "
            "or leave --train out."
        )
    if yes and not in_env:
        raise NucleusError("--yes is an answer to --in-env alone. Leave it out.")
    if in_env:
        options = ["--retrain"] * retrain
        options += [f"--train={path.absolute()}" for path in training_data]
        options += [f"--test={path.absolute()}" for path in test_data]
        find_mlflow()
        script = runs.reproduction_script(run_id, ["reproduce", run_id, *options])
        if not yes:
            _ask_whether_trusted(script)
        click.echo(script)
        return
    try:
        start()
        from flows.reproduce import reproduce as flow

        runs.fetch_record(run_id)
        result = flow(run_id, retrain, training_data, test_data)
    except NucleusError:
        raise
    except BaseException as error:  # exit code 1 would mean that the submission differs
        if isinstance(error, KeyboardInterrupt):
            click.echo("Aborted!", err=True)
        else:
            traceback.print_exc()
        sys.exit(2)
    click.echo(f"\n{result.report()}\n")
    print_table(run_rows(result.run_id))
    sys.exit(0 if result.identical else 1)


@click.command()
@training_option("Annotated images: a folder or zip. May be repeated.", required=True)
@recipe_options()
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE...",
    shell_complete=complete_key,
    help="Try these values. If repeated, every combination is tried.",
)
@click.option(
    "--halvings",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Number of rounds that drop the worse half.",
)
@click.option(
    "--draws", type=click.IntRange(min=1), help="Try this many combinations, drawn at random."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option("--out", type=PATH, help="Write the best recipe to this TOML file.")
def sweep(
    training_data: tuple[Path, ...],
    recipe_name: str | None,
    overrides: tuple[str, ...],
    over: tuple[str, ...],
    halvings: int,
    draws: int | None,
    seed: int,
    out: Path | None,
) -> None:
    """Train with combinations of values and find the best recipe."""
    from nucleus_unet.recipe import load_recipe

    name = recipe_name or "best"
    recipe = load_recipe(name, overrides)
    pairs = [word.partition("=") for word in over]
    # Commas in brackets belong to a list.
    values = {key: re.split(r",(?![^\[]*\])", text) if text else [] for key, _, text in pairs}
    if len(values) < len(over):
        raise NucleusError("--over names a key twice. Give all values of a key at once.")
    runs.candidates(recipe, values, draws, seed)  # refuses bad values at once
    read_data(training_data, recipe.data.plane, annotated=True)
    if out:
        make_folder(out.parent, "Choose another file with --out.")
        if out.is_dir():
            raise NucleusError(f"{out} is a folder. Give the name of a file with --out.")
    start()
    from flows.sweep import sweep as flow

    parameters = recipe_parameters(name, overrides) | {"halvings": halvings, "draws": draws}
    swept = flow(list(training_data), values, seed=seed, **parameters)
    click.echo("\nThe sweep has finished.")
    for trial in swept.trials:
        score = "failed" if trial.failed else f"{trial.score:.4f}"
        click.echo(f"{trial.epochs:4} epochs  {score}  {' '.join(trial.changes)}")
    print_table(run_rows(swept.run.id))
    if out:
        with writing(out, "Choose another file with --out."):
            write_atomically(out, swept.winner.to_toml())


def _ask_whether_trusted(script: str) -> None:
    """Say whose code a script runs, and ask whether to print it."""
    head = itertools.takewhile(lambda line: line.startswith("# "), script.splitlines())
    click.echo("\n".join(line.removeprefix("# ") for line in head), err=True)
    if not _can_be_asked():
        raise NucleusError(
            "Nobody can be asked whether this code is trusted. Read it, and give --yes."
        )
    question = "Whoever can write to MLflow may have changed what the run logged. Print the script?"
    click.confirm(question, abort=True, err=True)


def _can_be_asked() -> bool:
    return sys.stdin.isatty()
