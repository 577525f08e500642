"""Make a data set of images and annotations of other programs."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nucleus_unet.data.annotations.coco import CocoImage
from nucleus_unet.data.annotations.reading import (
    coco_images,
    read_annotations,
    read_coco_image,
    read_file,
)
from nucleus_unet.data.images import decode_image
from nucleus_unet.data.layouts import PICTURE, RawSample, picture_ending
from nucleus_unet.data.masks import DataProblem, Merged
from nucleus_unet.data.prepared import Progress, in_threads
from nucleus_unet.data.raw import RawDataset, open_raw, reads, walk
from nucleus_unet.errors import UNPRINTABLE, NucleusError
from nucleus_unet.files import first_names, new_folder, write_atomically, writing
from nucleus_unet.nuclei.exports import encode_label_image
from nucleus_unet.recipe import ONLY_PLANE, Plane

_ANNOTATIONS = re.compile(
    r"(?P<id>.+?)(?:\.(?:geo)?json(?:\.gz)?|\.roi|(?:_RoiSet)?\.zip|_seg\.npy)", re.IGNORECASE
)
_FORMATS = ".geojson, .json, .geojson.gz, .json.gz, .roi, .zip or _seg.npy"
_OTHER_FOLDER = "Choose another folder with --to."

_Read = Callable[[tuple[int, int]], Merged]
"""Reads the nuclei of one image, given its height and width."""


@dataclass(frozen=True)
class Imported:
    """A data set that `import_annotations` wrote."""

    images: int
    nuclei: int
    left_out: tuple[str, ...]
    """Ids of the images without annotation, sorted."""
    renamed: tuple[str, ...]
    """Ids in the data set that differ from those of the images, because those have folders."""
    problems: tuple[DataProblem, ...]
    """Problems with annotations, in the order of the images."""


def import_annotations(
    annotations: Path,
    images: Path,
    folder: Path,
    plane: Plane = ONLY_PLANE,
    progress: Progress | None = None,
    categories: Collection[str] = (),
) -> Imported:
    """Write a data set with a label image for each annotated image.

    Parameters
    ----------
    annotations : Path
        A file of QuPath, ImageJ, COCO or cellpose, or a folder of such files.
    images : Path
        The images, as `open_raw` reads them. Their own masks are not used.
    folder : Path
        The folder of the data set, which must be empty or not exist. It is written completely or not
        at all. It gets ``images/<id><suffix>``, an exact copy, and ``labels/<id>.png`` (``.tif`` from
        65,536 nuclei). Folders in an id are joined with ``-``.
    plane : Plane
        Which plane of stacks is the image.
    progress : callable, optional
        Called as ``progress(done, total)`` after each image.
    categories : collection of str
        Which categories of a COCO file are nuclei. Needed if its annotations have several.

    Raises
    ------
    NucleusError
        If a category must be chosen, does not exist, or is given for another file; if a file is damaged
        or holds annotations but no nucleus, an annotation has no image or several, an image has several
        annotations, or the folder is not empty or cannot be written.

    Notes
    -----
    COCO JSON names its images. Other files have the name of their image: ``cell_07.geojson``,
    ``cell_07.zip``, ``cell_07_RoiSet.zip``, ``cell_07_seg.npy``, in folders if the id has some. The name
    does not matter if there is one file and one image. An image without annotation is left out, because
    it is not an image without nuclei.
    """
    with open_raw(images) as raw:
        if reads(images, folder):
            raise NucleusError(f"{folder} is in the folder of the images. {_OTHER_FOLDER}")
        sources = _sources(annotations, raw, plane, categories)
        samples = [sample for sample in raw.samples if sample.id in sources]
        if not samples:
            raise NucleusError(f"{annotations}: annotates no image. Give another file.")
        names = _flat_names(samples)
        with new_folder(folder, _OTHER_FOLDER) as temporary:

            def write(sample: RawSample) -> tuple[int, tuple[DataProblem, ...]]:
                content = raw.read(sample.image)
                image = decode_image(content, f"{raw.path}/{sample.image}", plane).image
                file, read = sources[sample.id]
                merged = read((image.shape[0], image.shape[1]))
                if merged.problems and not merged.labels.any():
                    first = merged.problems[0]
                    raise NucleusError(
                        f"{file}: none of its annotations is a nucleus, for example {first.file}: "
                        f"{first.detail}. Remove the file, or annotate nuclei."
                    )
                suffix, labels = encode_label_image(merged.labels)
                name = names[sample.id]
                write_atomically(temporary / "images" / f"{name}{_ending(sample)}", content)
                write_atomically(temporary / "labels" / f"{name}{suffix}", labels)
                return int(merged.labels.max(initial=0)), merged.problems

            with writing(folder, _OTHER_FOLDER):
                written = list(in_threads(write, samples, progress))
    return Imported(
        images=len(samples),
        nuclei=sum(nuclei for nuclei, _ in written),
        left_out=tuple(sample.id for sample in raw.samples if sample.id not in sources),
        renamed=tuple(name for id_, name in names.items() if name != id_),
        problems=tuple(problem for _, problems in written for problem in problems),
    )


def _ending(sample: RawSample) -> str:
    """The ending of an image's copy; an OME-Zarr is written as a zip file."""
    ending = picture_ending(sample.image)
    return f"{ending}.zip" if ending.lower().endswith(".zarr") else ending


def _sources(
    annotations: Path, raw: RawDataset, plane: Plane, categories: Collection[str]
) -> dict[str, tuple[str, _Read]]:
    """For each annotated image by its id, the file of the annotation and a function that reads it."""
    files = _annotation_files(annotations)
    if len(files) == 1:
        [(file, path)] = files.items()
        coco = coco_images(read_file(path, file), file, categories)
        if coco is not None:
            return _sources_of_coco(file, coco, raw)
    if categories:
        raise NucleusError(f"{annotations}: is no COCO JSON. Leave --category out.")
    by_stem: defaultdict[str, list[RawSample]] = defaultdict(list)
    for sample in raw.samples:
        by_stem[Path(sample.id).name].append(sample)
    sources: dict[str, tuple[str, _Read]] = {}
    lost = []
    for file, path in files.items():
        found = _images_of(file, by_stem)
        if len(files) == len(raw.samples) == 1:
            found = list(raw.samples)
        if len(found) > 1:
            ids = first_names([sample.id for sample in found])
            raise NucleusError(
                f"{file}: may belong to {ids}. Put it into a folder of the same name as its image's."
            )
        for sample in found:
            _add(sources, sample, file, partial(_read, path, file, plane))
        if not found:
            lost.append(file)
    if lost:
        raise NucleusError(
            f"{first_names(lost)}: no image of this name in {raw.path}. Name annotations like their "
            "images, for example cell_07.geojson for cell_07.tif."
        )
    return sources


def _annotation_files(annotations: Path) -> dict[str, Path]:
    """Annotation files by name; in a folder by their path in it."""
    if annotations.is_dir():
        names = [name for name in walk(annotations) if _ANNOTATIONS.fullmatch(name)]
        if not names:
            raise NucleusError(f"{annotations}: no annotations found. They end in {_FORMATS}.")
        return {UNPRINTABLE.sub("?", name): annotations / name for name in names}
    if not annotations.exists():
        raise NucleusError(f"{annotations}: no such file or folder. Check the path.")
    return {annotations.name: annotations}


def _read(path: Path, file: str, plane: Plane, shape: tuple[int, int]) -> Merged:
    return read_annotations(read_file(path, file), file, shape, plane)


def _images_of(file: str, by_stem: Mapping[str, Sequence[RawSample]]) -> list[RawSample]:
    """The images that an annotation file may belong to by its name."""
    match = _ANNOTATIONS.fullmatch(file)
    wanted = match["id"] if match else file
    if picture := PICTURE.fullmatch(wanted):  # cell_07.tif.geojson
        wanted = f"{picture['folder']}{picture['stem']}"
    found = [
        sample
        for sample in by_stem.get(Path(wanted).name, ())
        if f"/{wanted}".endswith(f"/{sample.id}") or f"/{sample.id}".endswith(f"/{wanted}")
    ]
    return [sample for sample in found if sample.id == wanted] or found


def _sources_of_coco(
    file: str, coco: Sequence[CocoImage], raw: RawDataset
) -> dict[str, tuple[str, _Read]]:
    by_name: defaultdict[str, list[RawSample]] = defaultdict(list)
    for sample in raw.samples:
        by_name[Path(sample.image).name].append(sample)
    sources: dict[str, tuple[str, _Read]] = {}
    for image in coco:
        name = image.name.replace("\\", "/")
        called = by_name[name.rpartition("/")[2]]
        same = [one for one in called if f"{one.id}{picture_ending(one.image)}" == name]
        found = same if len(called) > 1 else called
        if len(found) != 1:
            raise NucleusError(
                f"{image.where}: {len(called) or 'no'} images are called {image.name!r:.100} in "
                f"{raw.path}. Give a folder that has each image of the file once."
            )
        _add(sources, found[0], image.where, partial(read_coco_image, image))
    return sources


def _add(sources: dict[str, tuple[str, _Read]], sample: RawSample, file: str, read: _Read) -> None:
    if sample.id in sources:
        raise NucleusError(
            f"{sources[sample.id][0]} and {file} both belong to the image {sample.id}. Remove one."
        )
    sources[sample.id] = file, read


def _flat_names(samples: Sequence[RawSample]) -> dict[str, str]:
    """Names of files by id: the layout has no folders below its two."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for sample in samples:
        name = names[sample.id] = sample.id.replace("/", "-")
        if name in taken:
            raise NucleusError(
                f"{taken[name]} and {sample.id} would both be written as {name}. Rename one of them."
            )
        taken[name] = sample.id
    return names
