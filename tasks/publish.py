"""What was made, put where people look: the MLflow run, Prefect artifacts, a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nucleus_unet.data.prepared import load_image, originals
from nucleus_unet.data.raw import dataset_name
from nucleus_unet.engine.events import EVENTS, EventLog, epochs
from nucleus_unet.engine.home import home_folder
from nucleus_unet.engine.isolation import run_in_worker
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_file, write_atomically, writing
from nucleus_unet.network.targets import CHANNELS
from nucleus_unet.nuclei import exports, label_images, submission
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import figures
from nucleus_unet.reports.card import model_card
from nucleus_unet.reports.evaluation import tuned_keys
from nucleus_unet.runs import tracking
from nucleus_unet.runs.reproduction import LoggedDataset
from nucleus_unet.runs.sweep import Trial
from tasks.encode import ROWS
from tasks.evaluate import BY_IMAGE, SCORES, TUNED, scores_of
from tasks.ingest import images_of
from tasks.merge_masks import dataset_of, labels_of
from tasks.reporting import show
from tasks.split import SPLIT_FILE, SPLIT_PICTURE, sides_of, validation_seen
from tasks.train import NETWORK_FILE

WAY_OUT = "free the disk, or set NUCLEUS_HOME or --out"


@dataclass(frozen=True)
class Trained:
    """The stages of a retraining, from the prepared images to the model and its scores."""

    images: Stage
    labels: Stage
    split: Stage
    model: Stage
    scores: Stage


@dataclass(frozen=True)
class Submission:
    """A submission that was checked and written."""

    path: Path
    sha256: str
    images: int
    nuclei: int


@task(cache_policy=NO_CACHE)
def publish_model(recipe: Recipe, data: Sequence[Path], made: Trained, run: tracking.Run) -> str:
    """Log the split, history, curves, scores, pictures, the model and its card; the model's id."""
    split, model, scores = made.split, made.model, made.scores
    events = EventLog(model.folder / EVENTS).new()
    history = epochs(events)
    network = model.folder / NETWORK_FILE
    threads = recipe.training.cpu_threads
    model_id = run_in_worker(threads, "nucleus_unet.runs.tracking:log_model", run, recipe, network)
    tracking.log_json(run, "history.json", history)
    tracking.log_bytes(run, "curves.png", figures.curves(history))
    results = [scores.folder / name for name in (SCORES, BY_IMAGE, TUNED)]
    tracking.log_files(run, "", [split.folder / SPLIT_FILE, *results])
    pictures = [split.folder / SPLIT_PICTURE, *sorted(scores.folder.glob("*.png"))]
    tracking.log_files(run, "pictures", pictures)
    merits = {f"validation/{key}": value for key, value in scores_of(scores).items()}
    if recipe.inference.tune:
        keys = tuned_keys(CHANNELS[recipe.network.outputs])
        merits |= {f"tuned/{key}": getattr(recipe.inference, key) for key in keys}
    tracking.log_metrics(run, merits, model_id=model_id)
    seconds = {f"seconds/{stage.name}": stage.seconds for stage in vars(made).values()}
    tracking.log_metrics(run, seconds)
    sides = sides_of(split)
    seen = validation_seen(split, made.images, recipe.training.start_from)
    overall, by_image = (
        json.loads((scores.folder / name).read_text()) for name in (SCORES, BY_IMAGE)
    )
    card = model_card(recipe, dataset_name(data), sides, events, overall, by_image, seen)
    create_markdown_artifact(card, key="model-card", description="Data, scores, cost, failures")
    tracking.log_bytes(run, "model_card.md", card.encode())
    tracking.describe(run.id, f"{card}\n\n{_gallery(run, pictures[1:])}")
    weights = run_in_worker(
        threads, "nucleus_unet.network.inference:weights_digest", network, threads
    )
    tags = {"stage.train": model.digest, "weights.sha256": weights}
    if model.cached and (first := tracking.first_finished_run("stage.train", model.digest)):
        tags["reused_from"] = first
    tracking.log_tags(run, tags)
    get_run_logger().info("logged as models:/%s of %s", model_id, run.url)
    return str(model_id)


@task(cache_policy=NO_CACHE)
def publish_submission(
    images: Stage, shards: Sequence[Sequence[Stage]], run: tracking.Run, to: Path
) -> Submission:
    """Join the shards' rows, check them and log the submission.

    Parameters
    ----------
    shards : sequence of sequences of Stage
        The stages of each shard, the encoded rows last.
    to : Path
        Folder of ``submission.csv``.
    """
    entries = images_of(images.folder)
    found: dict[str, list[str]] = {}
    for *_, encoded in shards:
        found |= submission.read_submission(encoded.folder / ROWS)
    rows = [(entry.id, rle) for entry in entries for rle in found[entry.id] or [""]]
    path = to / "submission.csv"
    with writing(path, WAY_OUT):
        submission.write_submission(path, rows)
    sizes = {entry.id: (entry.height, entry.width) for entry in entries}
    if problems := submission.validate_submission(path, sizes):
        row, image_id, what = problems[0]
        raise NucleusError(f"{path}: row {row}, image {image_id}: {what}; please report this")
    made = Submission(path, sha256_file(path), len(entries), sum(bool(rle) for _, rle in rows))
    tracking.log_files(run, "", [path])
    tracking.log_tags(run, {"submission.sha256": made.sha256})
    tracking.log_metrics(run, {"submission/images": made.images, "submission/nuclei": made.nuclei})
    seconds: dict[str, float] = {}
    for stage in (stage for shard in shards for stage in shard):
        seconds[f"seconds/{stage.name}"] = seconds.get(f"seconds/{stage.name}", 0) + stage.seconds
    tracking.log_metrics(run, seconds)
    get_run_logger().info("%d nuclei in %d images: %s", made.nuclei, made.images, made.path)
    return made


@task(cache_policy=NO_CACHE)
def publish_nuclei(
    raws: Sequence[Path],
    images: Stage,
    encoded: Sequence[Stage],
    outlines: Sequence[exports.Outlines],
    to: Path,
) -> None:
    """Write what was found, for people and for other programs.

    Intensities are measured in the raw files, of which `images` are the prepared ones.
    ``labels/<id>.png`` (``.tif`` for over 65,535 nuclei), ``overlays/<id>.png``, ``nuclei.csv`` and,
    by choice, ``outlines/<id>.geojson``, ``outlines/<id>.zip`` of ImageJ and ``coco.json``.
    """
    files = (path for stage in encoded for path in stage.folder.iterdir())
    label_files = {path.stem: path for path in files if path.suffix in (".png", ".tif")}
    rows = []

    def write(name: str, content: bytes | str) -> None:
        with writing(to / name, WAY_OUT):
            write_atomically(to / name, content)

    for entry, values in originals(raws, images_of(images.folder)):
        content = label_files[entry.id].read_bytes()
        write(f"labels/{label_files[entry.id].name}", content)
        labels = label_images.decode_label_image(content)
        title = f"{entry.id}: {labels.max()} nuclei"
        picture = figures.overlay_png(load_image(home_folder(), entry), labels, title=title)
        write(f"overlays/{entry.id}.png", picture)
        rows += [{"image": entry.id} | row for row in exports.measurements(values, labels)]
        if "geojson" in outlines:
            write(f"outlines/{entry.id}.geojson", exports.geojson(labels))
        if "imagej" in outlines:
            write(f"outlines/{entry.id}.zip", exports.imagej(labels))
    write("nuclei.csv", exports.nuclei_csv(rows))
    if "coco" in outlines:
        entries = images_of(images.folder)
        names = [Path(entry.source).name for entry in entries]
        if len(set(names)) < len(names):
            names = [f"{entry.id}{Path(entry.source).suffix}" for entry in entries]
        found = (label_images.decode_label_image(label_files[e.id].read_bytes()) for e in entries)
        write("coco.json", exports.coco(zip(names, found, strict=True)))


@task(cache_policy=NO_CACHE)
def publish_sweep(trials: Sequence[Trial], best: Trial, winner: Recipe, run: tracking.Run) -> None:
    """Log the table and picture of a sweep's trials, and the recipe of the best."""
    rows = [
        {
            **trial.values,
            "epochs": trial.epochs,
            "score": "failed" if trial.failed else round(trial.score, 4),
            "run": trial.run_id or "",
        }
        for trial in trials
    ]
    create_table_artifact(rows, key="sweep", description="Trials in their order")
    tracking.log_json(run, "trials.json", rows)
    lines = [
        ([*trial.values.values(), str(trial.epochs)], trial.score)
        for trial in trials
        if not trial.failed
    ]
    picture = figures.parallel_coordinates([*best.values, "epochs"], lines)
    show(picture, "trials", "Trials: a line each, better ones brighter")
    tracking.log_bytes(run, "trials.png", picture)
    tracking.log_bytes(run, "winner.toml", winner.to_toml().encode())
    tracking.log_metrics(run, {"best score": best.score})


def _gallery(run: tracking.Run, pictures: Sequence[Path]) -> str:
    """Logged pictures in markdown, as MLflow's UI draws them."""
    return "\n\n".join(
        f"![{picture.stem}](get-artifact?path=pictures/{picture.name}&run_uuid={run.id})"
        for picture in pictures
    )


def publish_dataset(
    run: tracking.Run,
    context: str,
    paths: Sequence[Path],
    images: Stage,
    labels: Stage | None = None,
) -> None:
    """Add a data set to the run's inputs, with the digest of its ids and contents."""
    profile = {"images": len(images_of(images.folder))}
    if labels:
        profile["nuclei"] = sum(entry.nuclei for entry in labels_of(labels.folder))
    data = LoggedDataset([str(path.absolute()) for path in paths], files_of(images, labels))
    digest = dataset_of(images, labels)
    tracking.log_dataset(run, dataset_name(paths), data, digest, context, profile)


def files_of(images: Stage, labels: Stage | None) -> list[dict[str, Any]]:
    """Id and size of each image, and the digests of its files."""
    files: dict[str, dict[str, Any]] = {
        entry.id: {
            "height": entry.height,
            "width": entry.width,
            "image_sha256": entry.source_sha256,
        }
        for entry in images_of(images.folder)
    }
    for entry in labels_of(labels.folder) if labels else ():
        files[entry.id]["masks_sha256"] = entry.source_sha256
    return [{"id": id_, **digests} for id_, digests in files.items()]
