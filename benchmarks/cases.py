"""The annotated images of a data set, each with its slide and source."""

from dataclasses import dataclass
from pathlib import Path

from nucleus_unet.data import (
    Sample,
    images_code,
    imaging_kind,
    labels_code,
    load_image,
    prepare_images,
    prepare_labels,
    slides_of_entries,
)
from nucleus_unet.engine import home_folder


@dataclass(frozen=True)
class Case:
    """An annotated image."""

    sample: Sample
    slide: str
    source: str


def cases(archive: Path) -> list[Case]:
    store = home_folder()
    images = prepare_images([archive], store, images_code(), annotated=True)
    labels = prepare_labels([archive], images, store, labels_code())
    shown = {entry.id: load_image(store, entry) for entry in images.entries}
    slides = slides_of_entries(store, images.entries)
    files = {entry.id: entry.path(store) for entry in labels.entries}
    found = []
    for entry in images.entries:
        kind, (height, width) = imaging_kind(shown[entry.id]), shown[entry.id].shape[:2]
        sample = Sample(entry.id, entry.path(store), files[entry.id], kind)
        found.append(Case(sample, slides[entry.id], f"{kind} {height}×{width}"))
    return found
