"""The recipe: one typed object that holds every choice of a run."""

import json
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import sha256_bytes

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """A part of the recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Part):
    """What the network sees of the images, and which of them it never trains on."""

    framing: Literal["resize", "crop"] = Field(
        "resize", description="resize: whole images; crop: pieces of them at their own resolution"
    )
    image_size: int = Field(
        256, ge=16, le=2048, description="Side in px of what the network is trained on"
    )
    normalize: bool = Field(
        False, description="Stretch each image by its percentiles, nuclei brighter than the ground"
    )
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0: images as often as they come; 1: imaging kinds equally often",
    )
    split: Literal["random", "slide"] = Field(
        "random", description="slide: images cut from one slide stay on one side"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of images held out, or of slides on average"
    )
    split_seed: int = Field(
        7, ge=0, lt=2**32, description="Random state of the train/validation split"
    )


class Augmentation(Part):
    """Random geometry, with the meaning and nearly the names of ImageDataGenerator, and more."""

    horizontal_flip: bool = Field(True, description="Mirror left to right, every other time")
    vertical_flip: bool = Field(True, description="Mirror top to bottom, every other time")
    rotation_range_deg: float = Field(
        90, ge=0, le=180, description="Angle uniform in ± this many degrees"
    )
    width_shift_range: Fraction = Field(0.1, description="Shift in x, ± this share of the width")
    height_shift_range: Fraction = Field(0.1, description="Shift in y, ± this share of the height")
    zoom_range: Fraction = Field(0.1, description="Zoom of x and of y, each uniform in 1 ± this")
    scale_range: tuple[PositiveFloat, PositiveFloat] = Field(
        (1, 1), description="Smallest and largest magnification of crops"
    )
    stain_range: float = Field(
        0,
        ge=0,
        le=0.25,
        description="Gamma, contrast, brightness of each channel, about ± this share; their mixing",
    )

    @model_validator(mode="after")
    def _smallest_first(self) -> Self:
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range = {list(self.scale_range)}: give the smaller one first")
        return self


class Network(Part):
    """The U-Net."""

    padding: Literal["same", "valid"] = Field(
        "same", description="valid: unpadded convolutions, cropped skips and a mirrored input"
    )
    activation: Literal["tanh", "relu", "elu", "selu"] = Field("relu", description="Activation")
    base_filters: int = Field(16, ge=1, le=256, description="Filters at full resolution")
    depth: int = Field(4, ge=1, le=6, description="Times the resolution is halved")
    dropout: tuple[Fraction, ...] = Field(
        (0.1, 0.1, 0.2, 0.2, 0.3),
        description="Dropout between the two convolutions, by level, full resolution first",
    )
    outputs: Literal["mask", "borders"] = Field(
        "mask", description="borders: the mask, and the borders between touching nuclei"
    )

    @model_validator(mode="after")
    def _dropout_by_level(self) -> Self:
        if len(self.dropout) != self.depth + 1:
            raise ValueError(
                f"dropout has {len(self.dropout)} values; a network of depth {self.depth} "
                f"has {self.depth + 1} levels"
            )
        return self


class Training(Part):
    """How the weights are found."""

    seed: int = Field(
        10, ge=0, lt=2**32, description="Seed of initial weights, augmentation and dropout"
    )
    epochs: int = Field(50, ge=1, le=10_000, description="Most epochs to train")
    steps_per_epoch: int = Field(25, ge=1, description="Batches in an epoch")
    batch_size: int = Field(32, ge=1, description="Images in a batch")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="Optimizer")
    learning_rate: float = Field(0.01, gt=0, description="Learning rate, at first")
    momentum: Fraction = Field(0.0, description="Momentum of sgd")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: from the learning rate to 0 at the last step"
    )
    early_stopping_epochs: int | None = Field(
        None,
        ge=1,
        description="Stop after so many epochs without a better validation mean IoU, of one crop an "
        "image where crops are trained on",
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Weights: of the epoch of the best validation mean IoU, or the last"
    )
    start_from: str | None = Field(
        None, description="MLflow run whose model's weights the training starts from"
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "auto", description="auto: mixed_bfloat16 or mixed_float16 where the device gains from it"
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="CPU threads inside an operation; auto: the machine's cores"
    )

    deterministic: bool = Field(
        True, description="Only kernels that give the same bits each time, on GPUs at some cost"
    )

    @property
    def cpu_threads(self) -> int:
        """`threads` of a resolved recipe."""
        assert self.threads != "auto"
        return self.threads


class Inference(Part):
    """How probabilities become nuclei."""

    cutoff: float = Field(0.5, gt=0, lt=1, description="A pixel is nucleus above this probability")
    large_cutoff: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="The same of large nuclei, if another, with outputs = borders"
    )
    batch_size: int = Field(16, ge=1, description="Resized images that are predicted at once")
    seed_cutoff: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="A nucleus begins where mask times 1 - border is above this",
    )
    min_area_px: int = Field(0, ge=0, description="Smaller nuclei are left out")
    min_confidence: Fraction = Field(
        0, description="Nuclei are left out unless the mean of their probabilities is above this"
    )
    tune: bool = Field(
        False,
        description="Choose cutoffs, least area and confidence by the score on validation images",
    )
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Images are predicted at so many times their size, where crops are trained on; "
        "of nuclei that several scales find at one place the likelier one is taken",
    )
    flips: bool = Field(False, description="Mean over the eight flips and turns of each image")
    tile_px: int = Field(
        1024,
        ge=320,
        multiple_of=64,
        description="Larger images are predicted in tiles of this side, where crops are trained on",
    )


class Recipe(Part):
    """Every choice of a run; what is the same in all runs is a constant beside its code.

    Read from a named recipe or a TOML file by `load_recipe`, resolved by
    `nucleus_unet.network.backend.resolve` before anything is computed or logged.
    """

    name: str = Field(description="What the run is called in the UIs")
    data: Data = Data()
    augmentation: Augmentation = Augmentation()
    network: Network = Network()
    training: Training = Training()
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _large_nuclei_told_apart(self) -> Self:
        if self.inference.large_cutoff is not None and self.network.outputs == "mask":
            raise ValueError("inference.large_cutoff goes with network.outputs = borders")
        return self

    @model_validator(mode="after")
    def _crops_of_any_size(self) -> Self:
        if self.data.framing == "resize":
            if self.augmentation.scale_range != (1, 1):
                raise ValueError("augmentation.scale_range goes with data.framing = crop")
            if self.inference.scales != (1,):
                raise ValueError("inference.scales goes with data.framing = crop")
        else:
            if self.network.padding == "valid":
                raise ValueError("data.framing = crop goes with network.padding = same")
            if self.network.depth > 4:
                raise ValueError(
                    f"data.framing = crop goes with network.depth up to 4, not {self.network.depth}: "
                    "a deeper network looks further than the tiles of large images overlap"
                )
            if self.data.image_size % 2**self.network.depth:
                raise ValueError(
                    f"data.image_size = {self.data.image_size} cannot be halved "
                    f"{self.network.depth} times, as this network does; take a multiple of "
                    f"{2**self.network.depth}"
                )
        return self

    def digest(self) -> str:
        """SHA-256 over every value but the name, as 64 hexadecimal digits."""
        return digest_of(self.model_dump(mode="json", exclude={"name"}))

    def flat(self) -> dict[str, Any]:
        """Dotted keys to values, as overrides spell them: ``{"training.epochs": 5, ...}``."""
        return flatten(self.model_dump(mode="json"))

    def to_toml(self) -> str:
        """As a recipe file, which `load_recipe` reads."""
        lines = []
        for name, part in self.model_dump(mode="json", exclude={"name"}).items():
            values = [f"{k} = {json.dumps(v)}" for k, v in part.items() if v is not None]
            lines += [f"[{name}]", *values, ""]
        return "\n".join(lines)

    def with_overrides(self, overrides: Iterable[str]) -> "Recipe":
        """A copy with ``key=value`` assignments applied.

        Parameters
        ----------
        overrides : iterable of str
            Dotted key, ``=``, and a TOML value; a bare word stands for a string
            (``training.epochs=5``, ``network.activation=elu``).

        Raises
        ------
        NucleusError
            A key that the recipe does not have or a value it does not allow.
        """
        values, overrides = self.model_dump(mode="json"), list(overrides)
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise NucleusError(f"{override}: write KEY=VALUE, as in training.epochs=5")
            *parts, last = key.strip().split(".")
            table: Any = values
            for part in parts:
                table = table.get(part) if isinstance(table, dict) else None
            if not isinstance(table, dict) or last not in table:
                raise NucleusError(f"{override}: no such key; {_nearest(key, self.flat())}")
            table[last] = _toml_value(text.strip())
        return parse_recipe(values, " ".join(overrides))


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to one table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("nucleus_unet.recipes")
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by its name, or from a TOML file where the argument ends in ``.toml``.

    Raises
    ------
    NucleusError
        No such recipe or file, not TOML, an unknown key, a value that is not allowed.
    """
    if name_or_path.endswith(".toml"):
        try:
            text = Path(name_or_path).read_bytes()
        except OSError as error:
            raise NucleusError(f"{name_or_path}: no recipe file ({error.strerror})") from error
    elif name_or_path in recipe_names():
        text = (resources.files("nucleus_unet.recipes") / f"{name_or_path}.toml").read_bytes()
    else:
        raise NucleusError(
            f"no recipe named {name_or_path!r}: choose from {', '.join(recipe_names())}, "
            "or give a path that ends in .toml"
        )
    try:
        values = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NucleusError(f"{name_or_path}: not valid TOML: {error}") from error
    return parse_recipe({"name": Path(name_or_path).stem} | values, name_or_path).with_overrides(
        list(overrides)
    )


def parse_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Validate nested tables as a recipe; the first error becomes a `NucleusError`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        if first["type"] == "extra_forbidden":
            known = {*Recipe.model_fields, *Recipe(name="").flat()}
            raise NucleusError(f"{origin}: no key {key}; {_nearest(key, known)}") from None
        # What several keys decide together has a table for its input.
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        why = first["msg"].removeprefix("Value error, ")
        raise NucleusError(f"{origin}: {key or 'recipe'}{value}: {why}") from None


def key_descriptions() -> dict[str, str]:
    """What each dotted key of a recipe says."""
    return {
        f"{name}.{key}": field.description or ""
        for name, part in Recipe(name="")
        if isinstance(part, Part)
        for key, field in type(part).model_fields.items()
    }


def recipe_differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """The keys in which two recipes differ, with both values, in the recipe's order."""
    flat_a, flat_b = a.flat(), b.flat()
    return [(key, flat_a[key], flat_b[key]) for key in flat_a if flat_a[key] != flat_b[key]]


def _nearest(key: str, known: Iterable[str]) -> str:
    """A hint that names the known key most like a misspelt one."""
    import difflib

    for close in difflib.get_close_matches(key, list(known), n=1):
        return f"did you mean {close}? (nucleus recipe show NAME lists all)"
    return "nucleus recipe show NAME lists all"


def _toml_value(text: str) -> Any:
    """The TOML value of a text, with ``none`` for null and a bare word for a string."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
