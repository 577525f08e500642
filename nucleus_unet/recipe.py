"""The recipe: one typed object with every setting of a run."""

import json
import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base class of the parts of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


OnBad = Literal["stop", "skip", "accept"]
Depth = Literal["max", "middle"] | PositiveInt
"""A z plane: the largest value of all, the plane in the middle, or a number, from 1."""


class Plane(NamedTuple):
    """Which channel, z plane, time and scene of a file is the image; None if there is only one."""

    channel: str | None = None
    z: Depth | None = None
    time: int | None = None
    scene: str | None = None


ONLY_PLANE = Plane()
"""For files that are no stacks."""


class Data(Part):
    """How images are shown to the network, and which are held out for validation."""

    framing: Literal["resize", "crop"] = Field(
        "resize",
        description="resize: scale each complete image to image_size; crop: train on random square "
        "pieces of image_size, and predict images at their own size",
    )
    image_size: int = Field(
        256,
        ge=16,
        le=2048,
        description="Side, in pixels, of the square images that the network is trained on",
    )
    normalize: bool = Field(
        False,
        description="Stretch the contrast of each image so that its percentiles 1 and 99.7 become "
        "black and white, and invert images with dark nuclei",
    )
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How evenly training draws the imaging kinds (fluorescence, bright-field, "
        "stained). 0: each image equally often; 1: each kind equally often",
    )
    split: Literal["random", "slide", "source"] = Field(
        "random",
        description="How validation images are chosen. random: one by one; slide: images cut from "
        "the same slide (specimen) are either all for training or all for validation; source: so are "
        "images of one imaging kind and size, to see how well unfamiliar microscopes are predicted",
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the images held out for validation; with split = slide, the "
        "probability that a slide is held out",
    )
    fold: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="[2, 5]: hold out the second of five equal parts of the images, instead of "
        "validation_fraction; with split = slide, a slide is in one part. training.folds sets this",
    )
    split_seed: int = Field(
        7,
        ge=0,
        lt=2**32,
        description="Seed of the split; another seed holds out other images",
    )
    on_bad: OnBad = Field(
        "stop",
        description="What to do with annotations that cannot be right, and in a prediction "
        "with images that cannot be read. stop: refuse the data; skip: leave these images out; accept: "
        "read the annotation anyway",
    )
    ignore_value: PositiveInt | None = Field(
        None,
        description="Value in label images of pixels that nobody annotated: they are neither learned "
        "nor scored. none: every pixel is annotated, unless there is a file ignore.png",
    )
    channel: str | None = Field(
        None,
        description="If images have several channels: the name or number (from 1) of the one to use; "
        "none: refuse such images",
    )
    z: Depth | None = Field(
        None,
        description="If images have several z planes: which to use. max: the largest value of all; "
        "middle: the plane in the middle; a number: that plane, from 1; none: refuse such images",
    )
    time: PositiveInt | None = Field(
        None,
        description="If images are time series: the number (from 1) of the time to use; none: refuse "
        "such images",
    )
    scene: str | None = Field(
        None,
        description="If files hold several images (scenes, series, positions): the name or number "
        "(from 1) of the one to use; none: refuse such files",
    )

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> Self:
        if self.fold and not self.fold[0] <= self.fold[1] >= 2:
            raise ValueError(
                f"fold = {list(self.fold)} is no fold. Give its number and the number of folds, such as "
                "[2, 5]."
            )
        return self

    @property
    def plane(self) -> Plane:
        """Which plane of a stack is the image."""
        return Plane(self.channel, self.z, self.time, self.scene)


class Augmentation(Part):
    """Random changes of the training images.

    The keys for geometry have the meaning of those of Keras' ImageDataGenerator.
    """

    horizontal_flip: bool = Field(
        True, description="Mirror left to right with a probability of one half"
    )
    vertical_flip: bool = Field(
        True, description="Mirror top to bottom with a probability of one half"
    )
    rotation_range_deg: float = Field(
        90,
        ge=0,
        le=180,
        description="Rotate by a random angle of at most this many degrees in either direction",
    )
    width_shift_range: Fraction = Field(
        0.1, description="Shift left or right by a random distance, at most this share of the width"
    )
    height_shift_range: Fraction = Field(
        0.1, description="Shift up or down by a random distance, at most this share of the height"
    )
    zoom_range: Fraction = Field(
        0.1,
        description="Stretch width and height, each by a random factor in 1 ± zoom_range",
    )
    scale_range: tuple[PositiveFloat, PositiveFloat] = Field(
        (1, 1),
        description="Smallest and largest random magnification: 2 makes nuclei twice as long and "
        "wide (only with data.framing = crop)",
    )
    stain_range: float = Field(
        0,
        ge=0,
        le=0.25,
        description="Strength of random changes of colour: gamma, contrast and brightness of each "
        "channel, and mixing of the channels. 0: none; 0.25: the strongest",
    )

    dim_range: Fraction = Field(
        0,
        description="In half of the fluorescence images, dim each nucleus by a random factor of its "
        "own, between 1 - dim_range and 1, and add bright debris and a glow. 0: never",
    )

    @model_validator(mode="after")
    def _smallest_first(self) -> Self:
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(
                f"scale_range = {list(self.scale_range)} is in the wrong order. "
                "Give the smaller number first."
            )
        return self


class Network(Part):
    """The architecture of the U-Net."""

    padding: Literal["same", "valid"] = Field(
        "same",
        description="same: convolutions keep the size of the image; valid: unpadded convolutions as "
        "in the original U-Net, on an image extended by mirroring (only with data.framing = resize)",
    )
    activation: Literal["tanh", "relu", "elu", "selu"] = Field(
        "relu", description="Activation function of the convolutions"
    )
    base_filters: int = Field(
        16,
        ge=1,
        le=256,
        description="Filters of a convolution at the first level; each deeper level has twice as "
        "many as the one above. More filters can learn more, and are slower",
    )
    depth: int = Field(
        4,
        ge=1,
        le=6,
        description="How often the network halves the resolution; a deeper network sees more of the "
        "surroundings of each pixel",
    )
    half_resolution: bool = Field(
        False,
        description="Halve the image by a strided convolution before the first level, and double the "
        "maps after it: half the time (only with network.padding = same)",
    )
    dropout: tuple[Fraction, ...] = Field(
        (0.1, 0.1, 0.2, 0.2, 0.3),
        description="Share of values that dropout sets to 0, one number for each level, the "
        "first one first (depth + 1 numbers)",
    )
    outputs: Literal["mask", "borders"] = Field(
        "mask",
        description="What the network predicts. mask: which pixels are nuclei; borders: also the "
        "borders between touching nuclei, to separate them",
    )

    @property
    def step_px(self) -> int:
        """The sides of an image must be multiples of this."""
        return int(2 ** (self.depth + self.half_resolution))

    @model_validator(mode="after")
    def _half_resolution_needs_padding(self) -> Self:
        if self.half_resolution and self.padding == "valid":
            raise ValueError(
                "half_resolution works only with padding = same. Set padding to same, or "
                "half_resolution to false."
            )
        return self

    @model_validator(mode="after")
    def _dropout_by_level(self) -> Self:
        if len(self.dropout) != self.depth + 1:
            raise ValueError(
                f"dropout has {len(self.dropout)} values, but a network of depth {self.depth} "
                f"has {self.depth + 1} levels. Give one value for each level."
            )
        return self


class Training(Part):
    """How the network is trained."""

    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="Train this many networks. Each holds out another part of the images, so that every "
        "image is validated by a network that does not know it; the model is the mean of all. none: one "
        "network",
    )
    seed: int = Field(
        10,
        ge=0,
        lt=2**32,
        description="Seed of initial weights, order of images, augmentation, dropout",
    )
    epochs: int = Field(
        50, ge=1, le=10_000, description="Epochs to train; early stopping may end training sooner"
    )
    steps_per_epoch: int = Field(
        25, ge=1, description="Batches in an epoch; validation follows each epoch"
    )
    batch_size: int = Field(
        32, ge=1, description="Images in a training batch; more need more memory"
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd", description="Algorithm that updates the weights: stochastic gradient descent or Adam"
    )
    learning_rate: float = Field(
        0.01, gt=0, description="Learning rate at the first step; training fails if it is too large"
    )
    momentum: Fraction = Field(0.0, description="Momentum of sgd; adam does not use it")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="How the learning rate changes. constant: not at all; cosine: it falls to 0 at "
        "the last step, along a cosine",
    )
    early_stopping_epochs: int | None = Field(
        None,
        ge=1,
        description="Stop after this many epochs without a better validation mean IoU (with "
        "data.framing = crop, of the middle of each image); none: train all epochs",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Which weights become the model. best: of the epoch with the highest validation "
        "mean IoU; last: of the last epoch",
    )
    start_from: str | None = Field(
        None,
        description="Model whose weights the training starts from: the ID of an MLflow run, champion or "
        "builtin; its architecture must be the same. none: random weights",
    )
    start_share: Fraction = Field(
        0,
        description="The weights of the model are a mean of those before and after the training, and "
        "those before have this share: 0 trains as usual, 0.5 changes the model half as much (only with "
        "start_from)",
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "auto",
        description="Number format of the arithmetic. auto: mixed_bfloat16 or mixed_float16 if the "
        "device is faster with it, float32 if not",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="CPU threads of one operation; auto: all cores. Another number gives slightly "
        "different results",
    )
    deterministic: bool = Field(
        True,
        description="Use only operations that give identical results each time; slower on GPUs",
    )

    @property
    def cpu_threads(self) -> int:
        """The number of threads in a resolved recipe, in which `threads` is not ``auto``."""
        assert self.threads != "auto"
        return self.threads


class Inference(Part):
    """How the network's predictions become nuclei."""

    cutoff: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="A pixel belongs to a nucleus if its probability is above this; higher values "
        "give smaller nuclei",
    )
    batch_size: int = Field(
        16,
        ge=1,
        description="Images predicted at once; more need more memory (only with data.framing = "
        "resize)",
    )
    seed_cutoff: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="A nucleus grows from the pixels where mask × (1 - border) is above this; "
        "higher values separate touching nuclei more often (only with network.outputs = borders)",
    )
    min_area_px: int = Field(
        0,
        ge=0,
        description="Remove nuclei with fewer pixels than this, counted at the scale at which a "
        "nucleus was found",
    )
    min_confidence: Fraction = Field(
        0,
        description="Remove nuclei whose confidence is this or less. It is the mean probability, "
        "multiplied by the area and divided by that of the convex hull",
    )
    grow_px: float = Field(
        0,
        ge=-20,
        le=20,
        description="Move the outline of each nucleus outwards by this many pixels, or inwards if it is "
        "negative, without overlap: for a model that draws nuclei too small, counted at the size of the "
        "prediction",
    )
    tune: bool = Field(
        False,
        description="Choose cutoff, seed_cutoff, min_area_px and min_confidence by the score on the "
        "validation images; the values in the recipe are the start of the search",
    )
    scale: float = Field(
        1.0,
        gt=0,
        le=8,
        description="Enlarge images by this factor before prediction, so that nuclei have the size of "
        "those in training: 0.5 for nuclei twice as large (only with data.framing = crop)",
    )
    fit_scale: bool = Field(
        False,
        description="Predict each image twice: first to find the size of its nuclei, then enlarged or "
        "reduced, if they are much smaller or larger than those of the training. nucleus predict sets "
        "it (only with data.framing = crop)",
    )
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Predict each image at these magnifications, multiplied by scale, and keep the "
        "most probable of nuclei found at the same place (only with data.framing = crop)",
    )
    flips: bool = Field(
        False,
        description="Average the predictions of the eight flips and quarter turns of each image; "
        "takes about eight times as long",
    )
    tile_px: int = Field(
        1536,
        ge=320,
        multiple_of=64,
        description="Predict larger images in overlapping tiles of at most this side in pixels; smaller "
        "tiles need less memory (only with data.framing = crop)",
    )


class Recipe(Part):
    """Every setting of a run. What never varies between runs is a constant in the code instead.

    `load_recipe` reads a recipe by name or from a TOML file.
    `nucleus_unet.network.backend.resolve` replaces its ``auto`` values before anything is computed
    or logged.
    """

    name: str = Field(description="Name of the run in Prefect and MLflow")
    data: Data = Data()
    augmentation: Augmentation = Augmentation()
    network: Network = Network()
    training: Training = Training()
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _folds_or_fold(self) -> Self:
        if self.training.folds and self.data.fold:
            raise ValueError(
                "training.folds trains on every fold, and data.fold on one. Leave one of them out."
            )
        return self

    @model_validator(mode="after")
    def _framing_fits(self) -> Self:
        if self.data.framing == "resize":
            if self.augmentation.scale_range != (1, 1):
                raise ValueError(
                    "augmentation.scale_range works only with data.framing = crop. "
                    "Set data.framing to crop, or augmentation.scale_range to [1, 1]."
                )
            if self.inference.scale != 1:
                raise ValueError(
                    "inference.scale works only with data.framing = crop, because the recipe resizes "
                    "every image to data.image_size. Choose a model of another recipe, or set it to 1."
                )
            if self.inference.fit_scale:
                raise ValueError(
                    "inference.fit_scale works only with data.framing = crop, because the recipe "
                    "resizes every image to data.image_size. Set it to false."
                )
            if self.inference.scales != (1,):
                raise ValueError(
                    "inference.scales works only with data.framing = crop. "
                    "Set data.framing to crop, or inference.scales to [1]."
                )
        else:
            if self.network.padding == "valid":
                raise ValueError(
                    "data.framing = crop works only with network.padding = same. "
                    "Set network.padding to same, or data.framing to resize."
                )
            if self.network.step_px > 16:
                raise ValueError(
                    f"network.depth = {self.network.depth} is too deep for data.framing = crop: the "
                    "network would see further than the tiles of large images overlap. "
                    f"Set network.depth to {4 - self.network.half_resolution} or less."
                )
            if self.data.image_size % self.network.step_px:
                raise ValueError(
                    f"data.image_size = {self.data.image_size} cannot be halved as often as the network "
                    f"does it. Use a multiple of {self.network.step_px}."
                )
        return self

    def digest(self) -> str:
        """SHA-256 of all values except the name, as 64 hexadecimal digits."""
        return digest_of(self.model_dump(mode="json", exclude={"name"}))

    def flat(self) -> dict[str, Any]:
        """All values by dotted key, as in ``{"training.epochs": 5, ...}``."""
        return flatten(self.model_dump(mode="json"))

    def to_toml(self) -> str:
        """The text of a recipe file, which `load_recipe` can read."""
        lines = []
        for name, part in self.model_dump(mode="json", exclude={"name"}).items():
            values = [f"{k} = {json.dumps(v)}" for k, v in part.items() if v is not None]
            lines += [f"[{name}]", *values, ""]
        return "\n".join(lines)

    @property
    def title(self) -> str:
        """The name and, if the recipe is of one fold, which."""
        fold = self.data.fold
        return f"{self.name}, fold {fold[0]} of {fold[1]}" if fold else self.name

    def of_fold(self, number: int) -> "Recipe":
        """The recipe of one of ``training.folds`` trainings, by its number from 1."""
        data = self.data.model_copy(update={"fold": (number, self.training.folds)})
        training = self.training.model_copy(update={"folds": None})
        return self.model_copy(update={"data": data, "training": training})

    def with_overrides(self, overrides: Iterable[str]) -> "Recipe":
        """A copy with some values changed.

        Parameters
        ----------
        overrides : iterable of str
            Assignments ``key=value`` with a dotted key and a TOML value. Strings need no quotes,
            and ``none`` unsets a value.

        Raises
        ------
        NucleusError
            If the recipe has no such key or does not allow the value.

        Examples
        --------
        >>> recipe = load_recipe("quick").with_overrides(["training.epochs=5", "training.seed=1"])
        >>> recipe.training.epochs, recipe.training.seed
        (5, 1)
        """
        values, overrides = self.model_dump(mode="json"), list(overrides)
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise NucleusError(
                    f"{override} has no value. Write KEY=VALUE, for example training.epochs=5."
                )
            *parts, last = key.strip().split(".")
            table: Any = values
            for part in parts:
                table = table.get(part) if isinstance(table, dict) else None
            if not isinstance(table, dict) or last not in table:
                raise NucleusError(f"{override}: unknown key. {_nearest(key, self.flat())}")
            table[last] = _value(text.strip(), is_text=key.strip() in _text_keys())
        return parse_recipe(values, " ".join(overrides))


def data_overrides(**given: object) -> tuple[str, ...]:
    """Changes of a recipe's ``data``, of the keys that have a value.

    Examples
    --------
    >>> data_overrides(channel="DAPI", z=None)
    ('data.channel=DAPI',)
    """
    return tuple(f"data.{key}={value}" for key, value in given.items() if value is not None)


def require_inference(overrides: Iterable[str]) -> None:
    """Make sure that changes of a recipe only change how a model predicts.

    Raises
    ------
    NucleusError
        If another key is changed.
    """
    for override in overrides:
        if not override.startswith("inference."):
            raise NucleusError(
                f"{override}: a prediction can only change keys that begin with inference."
            )


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value; the order of its keys does not matter."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into one table with dotted keys.

    Examples
    --------
    >>> flatten({"name": "a", "data": {"split": "slide"}})
    {'name': 'a', 'data.split': 'slide'}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def recipe_names() -> list[str]:
    """Sorted names of the recipes in the package."""
    folder = resources.files("nucleus_unet.recipes")
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by its name or from a TOML file.

    Parameters
    ----------
    name_or_path : str or Path
        One of `recipe_names`, or a path: a `Path`, or text that ends in ``.toml``. The stem of the file
        is then the default name of the recipe, and keys that are not in the file keep their defaults.
    overrides : iterable of str, optional
        Changes as in `Recipe.with_overrides`.

    Raises
    ------
    NucleusError
        If there is no such recipe or file, the file is not TOML, a key is unknown or a value is not
        allowed.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml"):
        try:
            text = Path(name_or_path).read_bytes()
        except OSError as error:
            raise NucleusError(
                f"{name_or_path}: cannot read the recipe file ({error.strerror}). Check the path."
            ) from error
    elif name_or_path in recipe_names():
        text = (resources.files("nucleus_unet.recipes") / f"{name_or_path}.toml").read_bytes()
    else:
        raise NucleusError(
            f"no recipe named {name_or_path!r}. Choose from {', '.join(recipe_names())}, "
            "or give a path that ends in .toml."
        )
    try:
        values = tomllib.loads(text.decode())
    except (
        ValueError,
        RecursionError,
    ) as error:  # not TOML, a number of 5,000 digits, deep nesting
        raise NucleusError(f"{name_or_path}: not valid TOML: {error}") from error
    return parse_recipe(
        {"name": Path(name_or_path).stem} | values, str(name_or_path)
    ).with_overrides(list(overrides))


def parse_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Validate nested tables as a recipe.

    Parameters
    ----------
    values : dict
        As in a recipe file, with ``name``.
    origin : str
        Where the values come from, for the error message.

    Raises
    ------
    NucleusError
        If a key is unknown or a value is not allowed; the message is about the first of them.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        if first["type"] == "extra_forbidden":
            known = {*Recipe.model_fields, *Recipe(name="").flat()}
            raise NucleusError(f"{origin}: unknown key {key}. {_nearest(key, known)}") from None
        # If several keys contradict each other, the input is a table and too long for a message.
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r:.100}"
        # Of a key with several types there is one message for each.
        of_key = (one for one in error.errors() if one["loc"][:2] == first["loc"][:2])
        same = [one["msg"] for one in of_key if one["input"] == first["input"]]
        why = " or ".join(dict.fromkeys(same)).removeprefix("Value error, ")
        why = why.replace(" or Input", " or input")
        raise NucleusError(f"{origin}: {key or 'recipe'}{value}: {why}") from None


def key_descriptions() -> dict[str, str]:
    """The description of each key of a recipe, by dotted key."""
    return {key: field.description or "" for key, field in _fields()}


def recipe_differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """The keys whose values differ, each with both values, in the order of the recipe."""
    flat_a, flat_b = a.flat(), b.flat()
    return [(key, flat_a[key], flat_b[key]) for key in flat_a if flat_a[key] != flat_b[key]]


def _nearest(key: str, known: Iterable[str]) -> str:
    """A hint with the most similar of the known keys, if there is one."""
    import difflib

    where = "'nucleus recipe show NAME' lists all keys."
    for close in difflib.get_close_matches(key, list(known), n=1):
        return f"Did you mean {close}? {where}"
    return where


def _text_keys() -> set[str]:
    """Dotted keys whose values are free text."""
    return {key for key, field in _fields() if str in get_args(field.annotation)}


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    """Each dotted key with its field."""
    for name, part in Recipe(name=""):
        if isinstance(part, Part):
            for key, field in type(part).model_fields.items():
                yield f"{name}.{key}", field


def _value(text: str, *, is_text: bool) -> Any:
    """Parse a TOML value; ``none`` is None, and what is not TOML is a string."""
    if text.lower() == "none":
        return None
    if is_text:  # a run id of 32 decimal digits is not a number
        return text.strip("\"'")
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text
