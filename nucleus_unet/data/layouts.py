"""Layouts of data sets: which files are images, and which files are their annotation."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleus_unet.errors import UNPRINTABLE, NucleusError

LAYOUT = (
    "<id>/images/<id>.png and, for training, <id>/masks/*.png or one label image <id>/labels.png"
)
KINDS_OF_FILES = "PNG, TIFF, JPEG, BMP, WebP, CZI, ND2, LIF or OME-Zarr"
"""What images can be."""
DATA_SET = f"A data set is a folder or zip file of {KINDS_OF_FILES} images, or of {LAYOUT}."
LABEL_FOLDERS = {
    "images": ("masks", "labels"),
    "imagestr": ("labelstr",),
    "training_source": ("training_target",),
}
"""Folders of images, and those that may hold a label image of the same name for each: of StarDist and
BiaPy, of nnU-Net, and of ZeroCostDL4Mic, in lower case."""
LONGEST_ID_BYTES = 240
"""Output files are named after the id, and file systems limit the length of a name."""

_ENDING = r"(?:\.(?:png|jpe?g|bmp|webp|czi|nd2|lif)|(?:\.ome)?\.(?:tiff?|zarr(?:\.zip)?))"
PICTURE = re.compile(rf"(?P<folder>(?:.*/)?)(?P<stem>[^/]+?){_ENDING}", re.IGNORECASE)
_KAGGLE = re.compile(
    r"(?:(?P<top>[^/]+)/)?(?P<id>[^/]+)/(?:"
    rf"(?P<image>images/)(?:[^/]+{_ENDING})?|"
    r"(?P<ignore>ignore\.(?:png|tiff?|bmp))|"
    r"(?P<folder>masks/)(?:[^/]+\.(?:png|tiff?|bmp))?|"
    r"(?P<labels>(?:masks|labels)\.(?:png|tiff?|bmp)))",
    re.IGNORECASE,
)
_IN_MASKS = re.compile(r"(?:[^/]+/){1,2}masks/.+", re.IGNORECASE)
_OF_CELLPOSE = re.compile(r"(?P<id>.+?)_(?P<what>(?:cp_)?masks|flows|cp_output|cp_outlines)")
"""Files that cellpose writes for an image; its masks are a label image."""
_ANNOTATED = re.compile(
    r"(?:(?P<image>.*)[_-])?(?:labels?|masks?|seg|segmentations?|gt|ground_?truth|annotations?|targets?)",
    re.IGNORECASE,
)
"""Names that files or folders of label images often have."""
_CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net numbers the channels of an image in its file names."""


def picture_ending(name: str) -> str:
    """The ending of an image file's name.

    Examples
    --------
    >>> picture_ending("plate 1/a.b.ome.tif"), picture_ending("a.zarr")
    ('.ome.tif', '.zarr')
    """
    found = PICTURE.fullmatch(name)
    assert found
    return name[found.end("stem") :]


@dataclass(frozen=True)
class RawSample:
    """One image and its annotation, as names of files in the data set."""

    id: str
    image: str
    masks: tuple[str, ...] = ()
    label_image: str | None = None
    annotated: bool = False
    """Whether there is a label image or a masks folder.

    An empty masks folder is the annotation of an image without nuclei.
    """
    ignore: str | None = None
    """A mask of the pixels that nobody annotated."""

    @property
    def annotation(self) -> tuple[tuple[str, str], ...]:
        """Name within the sample's folder and name in the data set, of each mask or the label image."""
        files = self.masks if self.label_image is None else (self.label_image,)
        return tuple((f"/{name}".rpartition(f"/{self.id}/")[2].lstrip("/"), name) for name in files)

    @property
    def files(self) -> tuple[str, ...]:
        """Names in the data set of all of its files."""
        ignore = (self.ignore,) if self.ignore else ()
        return (self.image, *(name for _, name in self.annotation), *ignore)


Folders = Mapping[str, Mapping[str, Sequence[str]]]
"""Pictures by folder, with a slash at the end, and by stem."""


def read_layout(path: Path, names: Collection[str]) -> tuple[str, list[RawSample]]:
    """Group the files of a data set into samples.

    Parameters
    ----------
    path : Path
        The data set, for messages.
    names : collection of str
        Names of files, and of folders with a slash at the end, without those that operating systems
        add.

    Returns
    -------
    tuple of str and list of RawSample
        What the layout is called, and the samples.

    Raises
    ------
    NucleusError
        If the files fit no layout, or more than one.
    """
    folders: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if match := PICTURE.fullmatch(name):
            folders[match["folder"]][match["stem"]].append(name)
    if folder := _image_folder(path, folders):
        return _in_two_folders(path, folder, folders)
    kaggle = {name: match for name in names if (match := _KAGGLE.fullmatch(name))}
    if not any(match["image"] and not name.endswith("/") for name, match in kaggle.items()):
        return _in_any_folders(path, folders)
    for name in names:
        if match := kaggle.get(name):
            _check_name(path, name, match["id"])
        elif PICTURE.fullmatch(name) or _IN_MASKS.fullmatch(name):
            raise _misplaced(path, name)
    if len(tops := sorted({match["top"] or "" for match in kaggle.values()})) > 1:
        raise _several(path, [top or "the root" for top in tops])
    by_id: defaultdict[str, list[str]] = defaultdict(list)
    for name, match in kaggle.items():
        by_id[match["id"]].append(name)
    samples = [_kaggle_sample(path, id_, sorted(n), kaggle) for id_, n in by_id.items()]
    return "a folder for each image", samples


def _image_folder(path: Path, folders: Folders) -> str | None:
    """The folder of images that has a folder of label images next to it; None in another layout."""
    found = [folder for folder in folders if _name(folder) in LABEL_FOLDERS]
    if len(found) > 1 and all(len(folders[folder]) > 1 for folder in found):
        raise _several(path, sorted(found))
    if len(found) != 1:
        return None
    [folder] = found
    is_at_root = folder.count("/") == 1
    if is_at_root or len(folders[folder]) > 1 or _name(folder) != "images":
        return folder
    # One image, as in a data set of Kaggle's layout with one sample.
    [stem] = folders[folder]
    label_folders = {_name(found): found for found in _label_folders(folder, folders)}
    masks = folders[label_folders["masks"]] if "masks" in label_folders else {}
    if list(masks) == [stem]:
        file = masks[stem][0]
        raise NucleusError(
            f"{path}: {file} may be the mask of one nucleus or a label image. If it is a mask, rename "
            f"it to {label_folders['masks']}1{Path(file).suffix}. If it is a label image, rename its "
            "folder to labels."
        )
    return folder if "labels" in label_folders else None


def _in_two_folders(path: Path, image_folder: str, folders: Folders) -> tuple[str, list[RawSample]]:
    """Images in one folder, and a label image of the same name for each in another folder."""
    label_folders = _label_folders(image_folder, folders)
    if len(label_folders) > 1:
        both = " and ".join(label_folders)
        raise NucleusError(f"{path}: has both {both}. Remove one of them.")
    labels = folders[label_folders[0]] if label_folders else {}
    images = folders[image_folder]
    if _name(image_folder) == "imagestr":
        images = _one_channel(path, images)
    for stem, files in labels.items():
        if stem not in images:
            raise NucleusError(
                f"{path}: {files[0]} has no image {image_folder}{stem}. Name label images like their "
                "images."
            )
    ignore_folder = f"{image_folder[: -len(_name(image_folder)) - 1]}ignore/"
    for folder, stems in folders.items():
        of_test = _name(folder) in ("imagests", "labelsts")
        if folder not in (image_folder, *label_folders, ignore_folder) and not of_test:
            raise _misplaced(path, next(iter(stems.values()))[0])
    ignored = folders.get(ignore_folder, {})
    samples = [
        _with_label_image(path, stem, files, labels, ignored) for stem, files in images.items()
    ]
    said = f"label images in {label_folders[0]}" if label_folders else "no label images"
    return f"images in {image_folder}, {said}", samples


def _label_folders(image_folder: str, folders: Folders) -> list[str]:
    """The folders next to a folder of images that may hold its label images."""
    name = _name(image_folder)
    parent = image_folder[: -len(f"{name}/")]
    return sorted(
        folder
        for folder in folders
        if folder.startswith(parent) and folder[len(parent) : -1].lower() in LABEL_FOLDERS[name]
    )


def _name(folder: str) -> str:
    """The last part of a folder's path, in lower case."""
    return folder[:-1].rpartition("/")[2].lower()


def _with_label_image(
    path: Path,
    id_: str,
    files: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    ignored: Mapping[str, Sequence[str]],
) -> RawSample:
    """The sample of an image that may have a label image, and a mask of pixels to ignore."""
    _check_name(path, files[0], id_)
    label_image = _only(path, id_, "label image", labels[id_]) if id_ in labels else None
    ignore = _only(path, id_, "mask to ignore", ignored[id_]) if id_ in ignored else None
    image = _only(path, id_, "image", files)
    return RawSample(id_, image, (), label_image, id_ in labels, ignore)


def _one_channel(path: Path, images: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """nnU-Net's images by the names of their label images."""
    found = {}
    for stem, files in images.items():
        match = _CHANNEL.fullmatch(stem)
        if match and match[2] != "0000":
            raise NucleusError(
                f"{path}: {files[0]} is a further channel of {match[1]}. Keep only the files of the "
                "channel that shows the nuclei, and name them ..._0000."
            )
        found[match[1] if match else stem] = files
    return found


def _in_any_folders(path: Path, folders: Folders) -> tuple[str, list[RawSample]]:
    """Images in any folders, each perhaps next to its label image; ids keep the folders."""
    if not folders:
        raise NucleusError(f"{path}: no images found. {DATA_SET}")
    common = os.path.commonpath(folders)
    by_id = {
        f"{folder}{stem}".removeprefix(f"{common}/"): files
        for folder, stems in folders.items()
        for stem, files in stems.items()
    }
    _require_images(path, folders)
    results = {id_: match for id_ in by_id if (match := _OF_CELLPOSE.fullmatch(id_))}
    masks = {id_: match["id"] for id_, match in results.items() if match["what"].endswith("masks")}
    labels: defaultdict[str, list[str]] = defaultdict(list)
    for id_, image in masks.items():
        if image in by_id:
            labels[image] += by_id[id_]
    samples = []
    for id_, files in by_id.items():
        if labels and id_ in results and results[id_]["id"] in by_id:
            continue
        if labels and id_ in masks:
            raise NucleusError(f"{path}: {files[0]} has no image {masks[id_]}. Add or remove it.")
        samples.append(_with_label_image(path, id_, files, labels, {}))
    return "images with label images next to them" if labels else "images", samples


def _require_images(path: Path, folders: Folders) -> None:
    """Make sure that no label image is taken for an image, because its place is not known."""
    for folder, stems in folders.items():
        if _ANNOTATED.fullmatch(_name(folder)):
            for other, images in folders.items():
                if other != folder and (both := images.keys() & stems.keys()):
                    first = min(both)
                    raise _unknown(path, stems[first][0], images[first][0])
        for stem, files in stems.items():
            match = _ANNOTATED.fullmatch(stem)
            if match and match["image"] in stems and not _OF_CELLPOSE.fullmatch(stem):
                raise _unknown(path, files[0], stems[match["image"]][0])


def _unknown(path: Path, labels: str, image: str) -> NucleusError:
    return NucleusError(
        f"{path}: {labels} may be the label image of {image}. In a data set, name the folders images "
        "and labels, or the files x.tif and x_masks.tif. To predict, give only the images."
    )


def _kaggle_sample(
    path: Path, id_: str, files: list[str], matches: Mapping[str, re.Match[str]]
) -> RawSample:
    images = [name for name in files if matches[name]["image"] and not name.endswith("/")]
    in_folder = [name for name in files if matches[name]["folder"]]
    label_images = [name for name in files if matches[name]["labels"]]
    ignored = [name for name in files if matches[name]["ignore"]]
    masks = tuple(name for name in in_folder if not name.endswith("/"))
    if masks and label_images:
        raise NucleusError(
            f"{path}: {id_} has both a masks folder and the label image {label_images[0]}. "
            "Remove one of them."
        )
    return RawSample(
        id_,
        _only(path, id_, "image", images),
        masks,
        _only(path, id_, "label image", label_images) if label_images else None,
        bool(in_folder or label_images),
        _only(path, id_, "mask to ignore", ignored) if ignored else None,
    )


def _only(path: Path, id_: str, what: str, files: Sequence[str]) -> str:
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} {what}s ({', '.join(files[:2])})" if files else f"no {what}"
    raise NucleusError(f"{path}: {id_} has {found} and must have exactly one. Add or remove files.")


def _check_name(path: Path, name: str, id_: str) -> None:
    if UNPRINTABLE.search(name):
        raise NucleusError(
            f"{path}: the name {name!r} has characters that cannot be printed. Rename the file."
        )
    if len(id_.encode()) > LONGEST_ID_BYTES:
        raise NucleusError(
            f"{path}: the id of {name} is longer than {LONGEST_ID_BYTES} bytes. Shorten it."
        )


def _misplaced(path: Path, name: str) -> NucleusError:
    return NucleusError(
        f"{path}: {name} does not fit the layout of the other files. Images are {KINDS_OF_FILES}, "
        f"masks are PNG, TIFF or BMP; for example in {LAYOUT}. Move or remove it."
    )


def _several(path: Path, places: Sequence[str]) -> NucleusError:
    return NucleusError(
        f"{path}: contains several data sets, below {' and '.join(places[:3])}. "
        "Give the path of one of them, or put each into a zip file of its own."
    )
