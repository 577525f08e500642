"""Nuclei from ``_seg.npy`` of cellpose: an array file that holds a pickled dictionary.

Loading a pickle calls whatever function it names, so a file from somebody else could run any program.
`read_seg` therefore does not load it. It reads the instructions of the pickle, and makes lists, tuples,
dictionaries, numbers and texts. Instead of a call it makes a record of the name and the arguments, and
it refuses every name that is not in `ALLOWED`. The record of the array of masks is then decoded here.
"""

import pickletools
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nucleus_unet.data.masks import Merged, number_label_image, size_text
from nucleus_unet.errors import NucleusError

ALLOWED = frozenset(
    {
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
        *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
        "_codecs.encode",  # how protocol 2 writes bytes
        "pathlib.PosixPath",  # the name of the image, if a script saved the file
        "pathlib.WindowsPath",
    }
)
"""Names that a file may hold. None of them is called."""
MOST_INSTRUCTIONS = 2_000_000
"""Limit for the instructions of a pickle: each makes an object of some 100 bytes."""
_INTEGERS = tuple(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))
_MAGIC = b"\x93NUMPY"
_SKIPPED = ("PROTO", "FRAME", "STOP")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
"""Instructions whose argument is put on the stack."""
_TAKEN = {
    **{
        "EMPTY_LIST": 0,
        "EMPTY_TUPLE": 0,
        "EMPTY_DICT": 0,
        "LIST": None,
        "TUPLE": None,
        "DICT": None,
    },
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "APPENDS": None},
    **{"SETITEM": 2, "SETITEMS": None, "STACK_GLOBAL": 2, "REDUCE": 2, "BUILD": 1},
}
"""Instructions that combine items of the stack, and how many; None for all above the last mark."""
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")


@dataclass(eq=False)
class _Name:
    """A name that the pickle holds."""

    name: str


@dataclass(eq=False)
class _Call:
    """What the pickle would call, and the state that it would then set."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def is_seg(content: bytes) -> bool:
    """Whether the bytes of a file are those of an array file, ``.npy``."""
    return content.startswith(_MAGIC)


def read_seg(content: bytes, file: str, shape: tuple[int, int]) -> Merged:
    """Read the masks of a ``_seg.npy`` file.

    Parameters
    ----------
    content : bytes
        The bytes of the file.
    file : str
        Name of the file, for messages.
    shape : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    Merged
        The masks, with numbers from 1 to n.

    Raises
    ------
    NucleusError
        If the file is damaged, holds a name that is not in `ALLOWED` or more than
        `MOST_INSTRUCTIONS`, or has no masks of the size of the image.
    """
    try:
        stream = BytesIO(content)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        held, _, dtype = read_header[npy.read_magic(stream)](stream)
        if held != () or dtype != np.dtype(object):
            raise NucleusError(
                f"{file}: an array, not a _seg.npy. Save the masks in cellpose again."
            )
        record = _read_pickle(stream, file)
        (seg,) = record.state[4]  # the values of an array, see `_array`
        masks = _array(seg["masks"])
    except NucleusError:
        raise
    except Exception as error:  # NumPy raises errors of any type for damaged headers
        raise NucleusError(
            f"{file}: damaged, or not a _seg.npy ({error!s:.80}). Save the masks in cellpose again."
        ) from error
    if masks.shape != shape:
        raise NucleusError(
            f"{file}: its masks are {size_text(masks.shape)}, but the image is {size_text(shape)}. "
            "Give the image that was annotated, at its size."
        )
    if masks.size and masks.min() < 0:
        raise NucleusError(f"{file}: has negative masks. Save the masks in cellpose again.")
    return number_label_image(file, masks)


def _array(record: _Call) -> NDArray[Any]:
    """Decode the record of an array. NumPy documents its state at ``ndarray.__reduce__``."""
    _, shape, dtype, in_columns, values = record.state
    code, order = dtype.arguments[0], dtype.state[1]
    if dtype.name != "numpy.dtype" or code not in _INTEGERS or order not in ("<", ">", "|"):
        raise ValueError("masks are not whole numbers")
    if isinstance(values, _Call) and values.name == "_codecs.encode":
        values = values.arguments[0].encode("latin-1")
    flat = np.frombuffer(values, np.dtype(order + code))
    return flat.reshape(shape, order="F" if in_columns else "C")


def _read_pickle(stream: BytesIO, file: str) -> Any:
    """The object that a pickle describes, with records instead of calls.

    The module `pickletools` of Python describes each instruction.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for done, (instruction, given, _) in enumerate(pickletools.genops(stream)):
        name, argument = instruction.name, cast(Any, given)
        if done == MOST_INSTRUCTIONS:
            raise NucleusError(
                f"{file}: has more than {MOST_INSTRUCTIONS} instructions. Save the masks in cellpose "
                "again."
            )
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _PUT:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_allowed(argument.split(" "), file))
        elif name in _TAKEN:
            count = _TAKEN[name]
            start = marks.pop() if count is None else max(0, len(stack) - count)
            items = stack[start:]
            del stack[start:]
            _combine(name, items, stack, file)
        elif name not in _SKIPPED:
            raise NucleusError(
                f"{file}: holds the instruction {name}, which a _seg.npy does not need. Save the masks "
                "in cellpose again."
            )
    return stack[-1]


def _combine(name: str, items: list[Any], stack: list[Any], file: str) -> None:
    """Make an object of items that an instruction took from the stack, or change the last object."""
    match name.removeprefix("EMPTY_").rstrip("123"):
        case "LIST":
            stack.append(items)
        case "TUPLE":
            stack.append(tuple(items))
        case "DICT":
            stack.append({})
            _set_items(stack[-1], items)
        case "APPEND" | "APPENDS":
            stack[-1].extend(items)
        case "SETITEM" | "SETITEMS":
            _set_items(stack[-1], items)
        case "STACK_GLOBAL":
            stack.append(_allowed(items, file))
        case "REDUCE":
            function, arguments = items
            stack.append(_Call(function.name, arguments))
        case "BUILD":
            [stack[-1].state] = items


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Add keys and values in turn. Hashing a tuple of tuples as a key could take forever."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes):
            raise ValueError("a key is neither a text nor a number")
        target[key] = value


def _allowed(parts: list[Any], file: str) -> _Name:
    """A name of two parts, module and attribute, that a file may hold."""
    if (name := ".".join(parts)) not in ALLOWED:
        raise NucleusError(
            f"{file}: holds {name!r:.80}, which a _seg.npy does not need and which could run a program. "
            "Do not open the file in another program unless you trust its source."
        )
    return _Name(name)
