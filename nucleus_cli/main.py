"""The ``nucleus`` command. Each command imports what it needs, so that help comes at once."""

import getpass
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import UNPRINTABLE


class PrintablePath(click.Path):
    """A path that may be written to logs and records."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if UNPRINTABLE.search(os.fspath(value)):
            self.fail(f"{os.fspath(value)!r} cannot be printed: rename it", param, ctx)
        return super().convert(value, param, ctx)


PATH = PrintablePath(path_type=Path, readable=False)  # what cannot be read has a line of ours
NIGHTLY = "0 2 * * *"
PLACES = {
    "champion": "the champion: predict works with it",
    "challenger": "the challenger: nucleus promote {} --why TEXT makes it the champion",
    "copy": "a copy of the champion, with which predict works",
}


def training_option(help: str, **more: Any) -> Callable[..., Any]:
    """The option ``--train``, which may be given several times."""
    return click.option("--train", "training_data", type=PATH, multiple=True, help=help, **more)


test_option = click.option(
    "--test", "test_data", type=PATH, help="Images to predict for the submission."
)


def recipe_options(default: str = "best") -> Callable[..., Any]:
    """The options that choose a recipe."""

    def options(command: Callable[..., None]) -> Callable[..., None]:
        named = click.option(
            "--recipe",
            "recipe_name",
            help=f"Name or TOML file (nucleus recipe list). Default: {default}.",
        )
        changed = click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a value of the recipe (nucleus recipe show NAME lists them); may be "
            "given several times.",
        )
        return named(changed(command))

    return options


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, one without a name
        return f"uid {os.getuid()}"


class _Refusal(click.ClickException):
    exit_code = 2


class Commands(click.Group):
    """A group whose commands end with one line and exit code 2 where the user can mend it."""

    def invoke(self, ctx: click.Context) -> Any:
        made_for_a_shell = "--in-env" in ctx.args
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if made_for_a_shell:  # which would find nothing to do, and end with 0
                click.echo("exit 2")
            if isinstance(error, NucleusError):
                raise _Refusal(str(error)) from error
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nucleus-unet")
def main() -> None:
    """Nucleus segmentation with a U-Net: retrain, predict, and look into what was done.

    Everything is kept in NUCLEUS_HOME (default: .nucleus). PREFECT_API_URL and MLFLOW_TRACKING_URI
    name servers where there are some.
    """


@main.command()
@training_option(
    "Images with masks, a folder or zip in Kaggle's layout; may be given several times. "
    "Default: the built-in sample."
)
@test_option
@recipe_options("best; quick on the built-in sample")
@click.option(
    "--registry/--no-registry",
    default=True,
    help="Register the model, and make it the champion where it is better than that one. Default.",
)
def retrain(
    training_data: tuple[Path, ...],
    test_data: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    registry: bool,
) -> None:
    """Train on annotated images, predict the test images, log it all."""
    from nucleus_unet.recipe import load_recipe

    if test_data and not training_data:
        raise NucleusError(
            "--test goes with --train: the built-in sample has test images of its own"
        )
    recipe = load_recipe(recipe_name or ("best" if training_data else "quick"), overrides)
    _require_raw(training_data, annotated=True)
    _require_raw([test_data] if test_data else [])
    running = _start()
    from flows.retrain import retrain as flow
    from nucleus_unet.runs.records import require_run

    data = (list(training_data) or None, test_data)
    made = running.run_flow(flow, *data, recipe, registry=registry)
    click.echo("\nRetrained.")
    rows = [
        (f"validation {key}", str(round(value, 4)))
        for key, value in made.scores.items()
        if not key.startswith("AP at")  # in both UIs
    ]
    if made.submission:
        rows += _rows_of(made.submission)
    if registry:
        tags = require_run(made.run.id)
        number, place = tags["model.version"], tags["model.place"]
        rows += [("model", f"version {number}, {PLACES[place].format(number)}")]
        rows += [("verdict", tags["model.verdict"])]
    _table([*rows, *_run_rows(made.run)])


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option(
    "--model",
    default="champion",
    show_default=True,
    metavar="RUN_ID",
    help="MLflow run that logged the model.",
)
@click.option("--out", required=True, type=PATH, help="Folder for what is made.")
@click.option(
    "--outlines",
    type=click.Choice(["geojson", "imagej", "coco"]),
    multiple=True,
    help="Outlines for QuPath, for ImageJ's ROI manager, or run lengths as COCO JSON.",
)
def predict(images: tuple[Path, ...], model: str, out: Path, outlines: tuple[str, ...]) -> None:
    """Find the nuclei in IMAGES: folders, zips or image files.

    Writes submission.csv, nuclei.csv (a row a nucleus: area, centre, mean intensity, eccentricity),
    labels/<id>.png (16 bit, one number a nucleus; from 65,536 nuclei <id>.tif, 32 bit) and
    overlays/<id>.png.
    """
    _require_raw(images)
    running = _start()
    from flows.predict import predict as flow
    from nucleus_unet.runs.records import require_run
    from nucleus_unet.runs.registry import run_of

    require_run(run_of(model))
    made = running.run_flow(flow, list(images), out, model, outlines)
    click.echo("\nPredicted.")
    _table(
        [
            ("model of run", made.model_run_id),
            *_rows_of(made.submission),
            ("label images", str(out / "labels")),
            ("overlays", str(out / "overlays")),
            ("table of nuclei", str(out / "nuclei.csv")),
            *_run_rows(made.run),
        ]
    )


@main.command()
@click.argument("run_id")
@click.option("--retrain", is_flag=True, help="Train again from the raw data.")
@training_option("Where the run's training data are now, if not where they were.")
@click.option(
    "--test",
    "test_data",
    type=PATH,
    multiple=True,
    help="Where its test images are, if they moved.",
)
@click.option(
    "--in-env",
    is_flag=True,
    help="Print a shell script that does so in the run's own revision, with its packages and switches; "
    "pipe it to sh.",
)
def reproduce(
    run_id: str,
    retrain: bool,
    training_data: tuple[Path, ...],
    test_data: tuple[Path, ...],
    in_env: bool,
) -> None:
    """Make the submission of run RUN_ID again, and say whether it is the same.

    Exit code 0 where it is identical, 1 where it differs, 2 where it could not be tried.
    """
    if training_data and not retrain:
        raise NucleusError("--train goes with --retrain: the logged model needs no training data")
    if in_env:
        options = ["--retrain"] * retrain
        options += [f"--train={path.absolute()}" for path in training_data]
        options += [f"--test={path.absolute()}" for path in test_data]
        _find_mlflow()
        from nucleus_unet.runs.records import reproduction_script

        click.echo(reproduction_script(run_id, ["reproduce", run_id, *options]))
        return
    data = [list(paths) or None for paths in (training_data, test_data)]
    try:
        running = _start()
        from flows.reproduce import reproduce as flow
        from nucleus_unet.runs.records import fetch_record
        from tasks.compare import report

        fetch_record(run_id)
        answer = running.run_flow(flow, run_id, retrain, *data)
    except NucleusError:
        raise
    except BaseException as error:  # 1 would say that it differs
        if isinstance(error, KeyboardInterrupt):
            click.echo("Aborted!", err=True)
        else:
            traceback.print_exc()
        sys.exit(2)
    click.echo(f"\n{report(answer)}\n")
    _table(_run_rows(answer.run))
    sys.exit(0 if answer.identical else 1)


@main.command()
@training_option("As for retrain.", required=True)
@recipe_options()
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE...",
    help="Try these values; every combination where it is given several times.",
)
@click.option(
    "--halvings",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Rounds that give up the worse half.",
)
@click.option(
    "--draws", type=click.IntRange(min=1), help="Try so many combinations, drawn at random."
)
@click.option("--seed", default=0, show_default=True, help="Of the draw of combinations.")
@click.option("--out", type=PATH, help="Write the best recipe there, as TOML.")
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
    """Train with combinations of values, and find the recipe that scores best."""
    from nucleus_unet.files import make_folder, write_atomically, writing
    from nucleus_unet.recipe import load_recipe
    from nucleus_unet.runs.sweep import candidates

    recipe = load_recipe(recipe_name or "best", overrides)
    pairs = [word.partition("=") for word in over]
    # Commas within brackets are of a list.
    values = {key: re.split(r",(?![^\[]*\])", text) if text else [] for key, _, text in pairs}
    if len(values) < len(over):
        raise NucleusError("--over has a key twice: give all its values at once, KEY=VALUE,VALUE")
    candidates(recipe, values, draws, seed)  # a refused one ends it here
    _require_raw(training_data, annotated=True)
    if out:
        make_folder(out.parent, "name another file with --out")
        if out.is_dir():
            raise NucleusError(f"{out}: a folder; name a file with --out")
    running = _start()
    from flows.sweep import sweep as flow

    swept = running.run_flow(flow, list(training_data), values, recipe, halvings, draws, seed)
    click.echo("\nSwept.")
    for trial in swept.trials:
        score = "failed" if trial.failed else f"{trial.score:.4f}"
        click.echo(f"{trial.epochs:4} epochs  {score}  {' '.join(trial.changes)}")
    _table(_run_rows(swept.run))
    if out:
        with writing(out, "name another file with --out"):
            write_atomically(out, swept.winner.to_toml())


@main.command()
@click.argument("version")
@click.option("--why", required=True, help="Kept with the version.")
@click.option("--who", default=_user, help="Kept with it too. Default: the user.")
def promote(version: str, why: str, who: str) -> None:
    """Make VERSION of the registered model the champion, with which predict works."""
    _find_mlflow()
    from nucleus_unet.runs import registry

    now = registry.promote_version(version, who, why)
    click.echo(f"champion  version {now.number} of run {now.run_id}")


@main.command()
@click.option("--why", required=True, help="Kept with the version.")
@click.option("--who", default=_user, help="Kept with it too. Default: the user.")
def rollback(why: str, who: str) -> None:
    """Make the version the champion again that was so before."""
    _find_mlflow()
    from nucleus_unet.runs import registry

    now = registry.restore_champion(who, why)
    click.echo(f"champion  version {now.number} of run {now.run_id}")


@main.command()
@click.argument("run_a")
@click.argument("run_b")
def diff(run_a: str, run_b: str) -> None:
    """In what two runs differ: recipe, data, machine, packages, source; and what each made."""
    _find_mlflow()
    from nucleus_unet.runs import records
    from nucleus_unet.runs.reproduction import compare_submissions, run_differences, side_by_side

    a, b = (records.fetch_record(run_id) for run_id in (run_a, run_b))
    for line in run_differences(a, b) or [
        "recipe, data, machine, packages and source are the same"
    ]:
        click.echo(line)
    click.echo()
    rows = side_by_side(a, b)
    width = max((len(left) for _, left, _ in rows), default=0)
    _table([(name, f"{left:{width}}  {right}") for name, left, right in rows])
    if "submission.sha256" in a.tags and "submission.sha256" in b.tags:
        sizes_a, sizes_b = (
            {file["id"]: (file["height"], file["width"]) for file in record.data["test"].files}
            for record in (a, b)
        )
        either = (sizes_a | sizes_b).items()
        sizes = {id_: size for id_, size in either if sizes_a.get(id_, size) == size}
        different = compare_submissions(
            records.fetch_submission(a), records.fetch_submission(b), sizes
        )
        click.echo(f"\n{len(different)} of {len(sizes)} images have other nuclei")
        for image in different[:20]:
            click.echo(
                f"{image.id}  {image.gained} gained, {image.lost} lost, {image.pixels} pixels changed"
            )


@main.command()
@click.argument("data", type=PATH)
def check(data: Path) -> None:
    """Say what is in a raw data set, and what is wrong with it; exit code 1 if something is."""
    from nucleus_unet.data.check import check_dataset as look
    from nucleus_unet.data.check import format_report

    report = look(data, _reporter("checking", "image"))
    click.echo(format_report(report))
    sys.exit(0 if report.ok else 1)


@main.command()
@click.argument("submission", type=PATH)
@click.argument("truth", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Every figure and every image, as JSON.")
def score(submission: Path, truth: Path, as_json: bool) -> None:
    """Score SUBMISSION against TRUTH as the 2018 Data Science Bowl does.

    TRUTH is a data set with masks, or the organisers' solution CSV.
    """
    from nucleus_unet.data.truth import read_truth
    from nucleus_unet.engine.home import home_folder
    from nucleus_unet.reports.evaluation import format_scores, match_submission, scores_table

    labels = read_truth(truth, home_folder(), _reporter("reading the truth", "files"))
    table = scores_table(match_submission(submission, labels))
    click.echo(json.dumps(table, indent=1) if as_json else format_scores(table))


@main.command()
@click.argument("name")
@click.option("--to", required=True, type=PATH, help="Folder for the files.")
def fetch(name: str, to: Path) -> None:
    """Download a public data set: dsb2018, the 2018 Data Science Bowl from its publisher."""
    from nucleus_unet.data import download

    moves: dict[str, Callable[[int, int | None], None]] = {}

    def move(file: str, done: int, total: int | None) -> None:
        if file not in moves:
            moves[file] = _reporter(file, "B")
        moves[file](done, total)

    files = download.download_dataset(name, to, progress=move)
    _table([(path.name, str(path)) for path in files])
    click.echo(download.SOURCE)


@main.group()
def recipe() -> None:
    """Show and compare recipes: every choice of a run."""


@recipe.command("list")
def recipe_list() -> None:
    """Names of the recipes."""
    from nucleus_unet.recipe import load_recipe, recipe_names

    for name in recipe_names():
        chosen = load_recipe(name)
        network, training = chosen.network, chosen.training
        steps = training.epochs * training.steps_per_epoch
        click.echo(
            f"{name:8} {chosen.data.image_size} px, {network.padding} U-Net of {network.base_filters} "
            f"filters and depth {network.depth}, {training.optimizer}, {steps} steps of "
            f"{training.batch_size}"
        )


@recipe.command("show")
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value.")
def recipe_show(name: str, overrides: tuple[str, ...]) -> None:
    """Every value of a recipe, as --set spells them, and what it says."""
    from nucleus_unet.recipe import key_descriptions, load_recipe

    values = {key: str(value) for key, value in load_recipe(name, overrides).flat().items()}
    width = max(map(len, values.values()))
    said = key_descriptions()
    _table([(key, f"{v:{width}}  {said.get(key, '')}".rstrip()) for key, v in values.items()])


@recipe.command("diff")
@click.argument("a")
@click.argument("b")
def recipe_diff(a: str, b: str) -> None:
    """The values in which two recipes differ."""
    from nucleus_unet.recipe import load_recipe, recipe_differences

    rows = recipe_differences(load_recipe(a), load_recipe(b))
    _table([(key, f"{left} → {right}") for key, left, right in rows])
    if not rows:
        click.echo("they are the same")


@main.command()
@click.argument("run_id", required=False)
def ui(run_id: str | None) -> None:
    """Serve the Prefect and MLflow UIs on loopback over the local databases, until Ctrl-C.

    With RUN_ID, say where that run is in both.
    """
    _prepare()
    from nucleus_unet.engine.servers import check_servers

    check_servers()
    click.echo("Starting Prefect and MLflow ...", err=True)
    from nucleus_cli.ui import serve_uis

    serve_uis(run_id, click.echo)


@main.command()
@training_option("Retrain on these by schedule, and at once on the event nucleus.data.changed.")
@test_option
@recipe_options()
@click.option("--cron", help=f"When, in UTC. Default: {NIGHTLY}, each night at two.")
@click.option(
    "--notify",
    metavar="TYPE/NAME",
    help="Tell of failures and new champions by this notification block, as slack-webhook/team.",
)
def deploy(
    training_data: tuple[Path, ...],
    test_data: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    cron: str | None,
    notify: str | None,
) -> None:
    """Give the Prefect server at PREFECT_API_URL what scheduled runs need; may be repeated.

    A scheduled run for which nothing changed ends at once. Without --train the schedule stays as it
    is, without --notify the notifications.
    """
    _prepare()
    if "PREFECT_API_URL" not in os.environ:
        raise NucleusError("deploy needs a Prefect server: start one and set PREFECT_API_URL")
    if (test_data or recipe_name or overrides or cron) and not training_data:
        raise NucleusError(
            "--test, --recipe, --set and --cron are of a schedule, and go with --train"
        )
    from nucleus_unet.engine.servers import check_servers

    check_servers()  # Prefect cannot be imported where its server has no address
    from flows.running import require_prefect
    from nucleus_cli.deploy import Schedule
    from nucleus_cli.deploy import set_up_server as deploy_to
    from nucleus_unet.recipe import load_recipe

    require_prefect()
    schedule = None
    if training_data:
        recipe = load_recipe(recipe_name or "best", overrides)
        paths = [path.absolute() for path in training_data]
        for path in (*paths, *([test_data] if test_data else [])):
            if not os.path.exists(path):  # also where that cannot be told
                click.echo(f"{path}: not on this machine; the worker must have it", err=True)
        schedule = Schedule(cron or NIGHTLY, paths, test_data and test_data.absolute(), recipe)
    deploy_to(schedule, notify, click.echo)


def _prepare() -> None:
    from nucleus_unet.engine.home import prepare_environment

    prepare_environment()


def _find_mlflow() -> None:
    """The environment settled, MLflow's database there or its server up; then it may be asked."""
    _prepare()
    from nucleus_unet.engine.servers import check_servers
    from nucleus_unet.runs import tracking

    check_servers("MLFLOW_TRACKING_URI")
    tracking.make_database()
    tracking.require_mlflow()


def _require_raw(paths: Iterable[Path], *, annotated: bool = False) -> None:
    """Raw data sets that cannot be opened are refused before anything is started."""
    from nucleus_unet.data.raw import open_raw

    for path in paths:
        with open_raw(path, annotated=annotated):
            pass


def _start() -> Any:
    """The environment settled and the servers found; then Prefect and MLflow may be imported."""
    _prepare()
    click.echo("Starting Prefect and MLflow ...", err=True)
    from nucleus_cli import server
    from nucleus_unet.engine.home import home_folder, ui_url
    from nucleus_unet.engine.servers import check_servers
    from nucleus_unet.files import locked

    # Two that make the same database at once both fail.
    with locked(home_folder() / "locks" / "databases"):
        own = "PREFECT_API_URL" not in os.environ
        on_dask = os.environ.get("NUCLEUS_TASK_RUNNER") == "dask"
        if own and on_dask and "DASK_SCHEDULER_ADDRESS" in os.environ:
            raise NucleusError(
                "DASK_SCHEDULER_ADDRESS names workers of other machines, which need a Prefect server "
                "too: start one and set PREFECT_API_URL"
            )
        if own:
            url, process = server.start_server()
            os.environ |= {"PREFECT_API_URL": url, "PREFECT_UI_URL": ui_url("prefect")}
        from flows import running

        if own:
            server.wait_for(url, process, server.log_path())
        else:
            check_servers("PREFECT_API_URL")
            running.require_prefect()
        _find_mlflow()
    return running


def _typed() -> Path | str:
    """The command as it was typed, where the shell would not find it by its name."""
    typed = Path(sys.argv[0])
    return typed if typed.name == "nucleus" and not shutil.which("nucleus") else "nucleus"


def _rows_of(submission: Any) -> list[tuple[str, str]]:
    return [
        ("submission", str(submission.path)),
        ("SHA-256", submission.sha256),
        ("nuclei", f"{submission.nuclei} in {submission.images} images"),
    ]


def _run_rows(run: Any) -> list[tuple[str, str]]:
    return [("run", run.id), ("see it in both UIs", f"{_typed()} ui {run.id}")]


def _table(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"{name:{width}}  {value}")


def _reporter(what: str, unit: str) -> Callable[[int, int | None], None]:
    from nucleus_unet.engine.progress import reporter

    return reporter(what, unit, lambda line: click.echo(line, err=True))


if __name__ == "__main__":
    main()
