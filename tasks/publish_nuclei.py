"""Write the nuclei for people and other programs: label images, overlays, tables and outlines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect.logging import get_run_logger

from nucleus_unet.data import (
    Channels,
    ImageEntry,
    TrainingImages,
    load_image,
    originals,
    picture_ending,
    read_images,
    unlike,
)
from nucleus_unet.engine import Stage, raise_if_abandoned
from nucleus_unet.files import write_atomically, writing
from nucleus_unet.nuclei import LabelFormat, Outlines, exports, measurements
from nucleus_unet.recipe import Recipe
from nucleus_unet.reports import (
    PREDICTED_LEGEND,
    UNSURE_LEGEND,
    contact_sheet,
    overlay_file,
    predicted_overlay,
    short_name,
)
from tasks.encode import UNCERTAINTY
from tasks.predict import FoundNuclei, images_in
from tasks.publish_submission import NO_SPACE
from tasks.reporting import uncached_task

OVERVIEW = 12
"""Largest number of images in ``overview.png``."""


@dataclass(frozen=True)
class Output:
    """What a prediction writes, and where."""

    folder: Path
    outlines: Sequence[Outlines] = ()
    """Formats of outlines to write in addition."""
    label_format: LabelFormat = "png"
    pixel_size_um: float | None = None
    """Side of a pixel in all images, instead of what their files say."""


@dataclass(frozen=True)
class _Found:
    """An image and its nuclei."""

    entry: ImageEntry
    channels: Channels
    image: NDArray[np.uint8]
    label_file: Path
    labels: NDArray[Any]
    confidence: NDArray[np.float32]
    uncertainty: Sequence[float]
    """Of the image and then of each nucleus; empty if the model is a single network."""
    pixel_size_um: float | None

    def drawn(self, side_px: int | None = None) -> NDArray[np.uint8]:
        """The image with the outlines of its nuclei."""
        return predicted_overlay(self.image, self.labels, self.uncertainty[1:], side_px)


@uncached_task("write label images, overlays and tables")
def publish_nuclei(
    raws: Sequence[Path],
    images: Stage,
    found_nuclei: Sequence[FoundNuclei],
    recipe: Recipe,
    trained_on: TrainingImages | None,
    output: Output,
) -> None:
    """Write the nuclei of all images into a folder.

    Parameters
    ----------
    raws : sequence of Path
        The raw images, whose values the intensities are measured on.
    images : Stage
        The prepared images.
    found_nuclei : sequence of FoundNuclei
        Those of each shard.
    recipe : Recipe
        Resolved.
    trained_on : TrainingImages, optional
        What the model was trained on, if it is known. Images that differ are reported.
    output : Output
        Its folder gets ``labels/<id>.png`` (``.tif`` from 65,536 nuclei, ``.ome.tif`` or ``.zarr``),
        ``overlays/<id>.png`` (``.tif`` if it is very large), ``overview.png``, ``nuclei.csv``,
        ``nuclei.parquet`` and ``images.csv``; for outlines ``outlines/<id>.geojson``,
        ``outlines/<id>.zip`` (ImageJ), ``coco.json`` and ``coco_results.json``.
    """
    encoded = [one.encoded for one in found_nuclei]
    scales = {
        entry.id: one.shard.scale for one in found_nuclei for entry in images_in(images, one.shard)
    }
    rows: list[measurements.Row] = []
    of_images: list[measurements.Row] = []
    tiles: list[tuple[str, NDArray[np.uint8]]] = []
    for found in _each(raws, images, encoded, output.pixel_size_um):
        raise_if_abandoned()
        measured = _write_image(found, output)
        rows += [{"image": found.entry.id, **row} for row in measured]
        diameters = [row["diameter_px"] for row in measured]
        scale = scales[found.entry.id]
        of_images.append(_image_row(found, diameters, recipe, trained_on, scale))
        if len(tiles) < OVERVIEW:
            title = f"{short_name(found.entry.id)}: {len(measured)} nuclei"
            tiles.append((title, found.drawn(side_px=480)))
    index = read_images(images.folder)
    of_images += [
        {"image": one.id, "file": one.source, "state": "skipped", "note": one.reason}
        for one in index.skipped
    ]
    _write(output, "nuclei.csv", measurements.nuclei_csv(rows))
    _write(output, "nuclei.parquet", measurements.nuclei_parquet(rows))
    _write(output, "images.csv", measurements.images_csv(of_images))
    of_folds = any(row["uncertainty"] is not None for row in of_images if row["state"] == "done")
    legend = UNSURE_LEGEND if of_folds else PREDICTED_LEGEND
    _write(output, "overview.png", contact_sheet(tiles, legend))
    if "coco" in output.outlines:
        named = _coco_images(index.entries, encoded)
        for name, text in zip(("coco.json", "coco_results.json"), exports.coco(named), strict=True):
            _write(output, name, text)
    _warn(of_images)
    get_run_logger().info("wrote label images, overlays and tables to %s", output.folder)


def _each(
    raws: Sequence[Path], images: Stage, encoded: Sequence[Stage], pixel_size_um: float | None
) -> Iterator[_Found]:
    entries, files = read_images(images.folder).entries, _label_files(encoded)
    for entry, channels in originals(raws, entries):
        file = files[entry.id]
        size = pixel_size_um or entry.pixel_size_um
        image, uncertainty = load_image(images.home, entry), _uncertainty(file)
        yield _Found(entry, channels, image, file, *_nuclei(file), uncertainty, size)


def _label_files(encoded: Sequence[Stage]) -> dict[str, Path]:
    return {
        str(path.relative_to(stage.folder).with_suffix("")): path
        for stage in encoded
        for path in stage.folder.rglob("*")
        if path.suffix in (".png", ".tif")
    }


def _uncertainty(label_file: Path) -> list[float]:
    path = label_file.with_suffix(UNCERTAINTY)
    found: list[float] = json.loads(path.read_text()) if path.exists() else []
    return found


def _nuclei(label_file: Path) -> tuple[NDArray[Any], NDArray[np.float32]]:
    confidence = np.load(label_file.with_suffix(".npy"))
    return exports.decode_label_image(label_file.read_bytes()), confidence


def _write_image(found: _Found, output: Output) -> list[measurements.Row]:
    """Write the files of one image, and return the measurements of its nuclei."""
    id_ = found.entry.id
    if output.label_format == "png":
        content = found.label_file.read_bytes()
        _write(output, f"labels/{id_}{found.label_file.suffix}", content)
    elif output.label_format == "ome-tiff":
        content = exports.label_ome_tiff(found.labels, id_, found.pixel_size_um)
        _write(output, f"labels/{id_}.ome.tif", content)
    else:
        files = exports.ome_zarr(found.labels, found.channels, found.pixel_size_um)
        for path, content in files.items():
            _write(output, f"labels/{id_}.zarr/{path}", content)
    suffix, drawn = overlay_file(found.drawn())
    _write(output, f"overlays/{id_}{suffix}", drawn)
    measured = measurements.measure_nuclei(
        found.labels, found.channels, found.confidence, found.pixel_size_um
    )
    if found.uncertainty:
        of_nuclei = zip(measured, found.uncertainty[1:], strict=True)
        measured = [{**row, "uncertainty": value} for row, value in of_nuclei]
    if {"geojson", "imagej"} & set(output.outlines):
        traced = exports.outlines(found.labels)
        if "geojson" in output.outlines:
            _write(output, f"outlines/{id_}.geojson", exports.geojson(traced, measured))
        if "imagej" in output.outlines:
            _write(output, f"outlines/{id_}.zip", exports.imagej(traced))
    return measured


def _image_row(
    found: _Found,
    diameters_px: Sequence[float],
    recipe: Recipe,
    trained_on: TrainingImages | None,
    scale: float,
) -> measurements.Row:
    """The row of an image in ``images.csv``."""
    height, width = found.entry.height, found.entry.width
    notes = []
    if recipe.data.framing == "resize" and max(height, width) > 4 * recipe.data.image_size:
        by = max(height, width) / recipe.data.image_size
        notes.append(f"was reduced {by:.1f} times, because the recipe resizes images")
    if trained_on:
        notes += unlike(found.image, diameters_px, trained_on, scale * recipe.inference.scale)
    return {
        "image": found.entry.id,
        "file": found.entry.source,
        "state": "done",
        "width_px": width,
        "height_px": height,
        "pixel_size_um": found.pixel_size_um,
        "scale": scale * recipe.inference.scale,
        "nuclei": len(diameters_px),
        "median_diameter_px": float(np.median(diameters_px)) if diameters_px else None,
        "uncertainty": found.uncertainty[0] if found.uncertainty else None,
        "note": "; ".join(notes),
    }


def _coco_images(
    entries: Sequence[ImageEntry], encoded: Sequence[Stage]
) -> Iterator[tuple[str, NDArray[Any], NDArray[np.float32]]]:
    names = [Path(entry.source).name for entry in entries]
    if len(set(names)) < len(names):
        names = [f"{entry.id}{picture_ending(entry.source)}" for entry in entries]
    files = _label_files(encoded)
    for entry, name in zip(entries, names, strict=True):
        yield name, *_nuclei(files[entry.id])


def _warn(of_images: Sequence[measurements.Row]) -> None:
    noted = [row for row in of_images if row["state"] == "done" and row["note"]]
    if noted:
        get_run_logger().warning(
            "%d of %d images differ from those that the model was trained on, for example %s: %s. See "
            "images.csv",
            *(len(noted), len(of_images), noted[0]["image"], noted[0]["note"]),
        )


def _write(output: Output, name: str, content: bytes | str) -> None:
    with writing(output.folder / name, NO_SPACE):
        write_atomically(output.folder / name, content)
