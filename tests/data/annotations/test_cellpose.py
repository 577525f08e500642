import builtins
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import PosixPath
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from nucleus_unet.data.annotations import cellpose as module
from nucleus_unet.data.annotations.cellpose import is_seg, read_seg
from nucleus_unet.data.masks import Merged
from nucleus_unet.errors import NucleusError

MASKS = np.array([[0, 3, 3], [9, 0, 0]], np.uint16)


def saved(seg: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, seg)
    return content.getvalue()


def pickled(pickle_: bytes) -> bytes:
    """An array file of one object with a pickle in it."""
    content = io.BytesIO()
    described = {"descr": "|O", "fortran_order": False, "shape": ()}
    npy.write_array_header_1_0(content, described)
    return content.getvalue() + pickle_


def read(content: bytes) -> Merged:
    return read_seg(content, "a_seg.npy", (2, 3))


def refused(content: bytes) -> str:
    with pytest.raises(NucleusError) as caught:
        read(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_masks_of_a_file_like_those_of_cellpose() -> None:
    seg = {
        **{"outlines": MASKS, "colors": np.zeros((2, 3), np.uint8), "chan_choose": [0, 0]},
        **{"filename": "a.png", "flows": [np.zeros((2, 3), np.float32), []], "ismanual": [True]},
        **{"manual_changes": [["05/06/2024", "added mask", [np.arange(2), np.arange(2)]]]},
        **{"model_path": 0, "flow_threshold": 0.4, "diameter": np.float64(30.0), "restore": None},
        **{"normalize_params": {"lowhigh": None, "percentile": [1.0, 99.0], "norm3D": True}},
        **{"zdraw": np.array([None, [1, 2]], object), "masks": MASKS},
    }
    merged = read(saved(seg))
    assert merged.labels.tolist() == [[0, 1, 1], [2, 0, 0]]
    assert merged.problems == ()


@pytest.mark.parametrize("dtype", ["u1", "<u4", ">u2", "<i4", ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_masks_of_any_whole_type_and_order(dtype: str, order: Any) -> None:
    masks = np.asarray(MASKS, dtype, order=order)
    assert read(saved({"masks": masks})).labels.tolist() == [[0, 1, 1], [2, 0, 0]]


@pytest.mark.parametrize("protocol", range(5))
def test_any_protocol_that_numpy_has_written(protocol: int) -> None:
    array = np.array({"masks": MASKS, "filename": PosixPath("a")}, object)
    content = pickled(pickle.dumps(array, protocol))
    assert read(content).labels.tolist() == [[0, 1, 1], [2, 0, 0]]
    old = content.replace(b"numpy._core", b"numpy.core") if protocol < 4 else content
    assert read(old).labels.tolist() == [[0, 1, 1], [2, 0, 0]]


def test_masks_without_background_are_reported() -> None:
    [problem] = read(saved({"masks": np.ones((2, 3), int)})).problems
    assert (problem.file, problem.kind) == ("a_seg.npy", "no background")


def test_what_is_an_array_file() -> None:
    assert is_seg(saved({}))
    assert not is_seg(b"PK\3\4")


class Hostile:
    """Makes a pickle that would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a pickle called."""
    calls: list[str] = []
    monkeypatch.setattr(os, "system", calls.append)
    monkeypatch.setattr(builtins, "eval", calls.append)
    yield calls
    assert calls == []


def test_a_pickle_that_is_loaded_would_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The opposite of the tests below: their files do harm if they are loaded."""
    calls: list[str] = []
    monkeypatch.setattr(os, "system", calls.append)
    content = b"cos\nsystem\n(S'true'\ntR."
    assert "holds 'os.system'" in refused(pickled(content))
    assert calls == []
    pickle.loads(content)
    assert calls == ["true"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", None),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x02cos\nsystem\nU\x04true\x85\x81.", "os.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__init__'\ntR.", "builtins.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dload.__call__\x93.", "numpy.load.__call__"),
        (b"cnumpy\nload\n(S'/etc/passwd'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"ccodecs\nencode\n.", "codecs.encode"),
        (b"\x80\x02\x82\x01.", None),  # a name by number
        (b"P1\n.", None),  # an object that the loader knows
        (b"\x80\x05\x97.", None),  # a buffer beside the pickle
    ],
)
def test_a_hostile_pickle_calls_nothing(
    content: bytes, name: str | None, called: list[str]
) -> None:
    line = refused(pickled(content))
    if name:
        assert line.startswith(
            f"a_seg.npy: holds '{name}', which a _seg.npy does not need and which"
        )
    else:
        assert line.startswith("a_seg.npy: holds the instruction ")


def test_a_hostile_object_within_a_file_of_cellpose(called: list[str]) -> None:
    seg = {"masks": MASKS, "filename": Hostile(os.path.join, "a", "b")}
    assert "a_seg.npy: holds 'posixpath.join', which" in refused(saved(seg))


def test_allowed_names_are_not_called_either() -> None:
    """`numpy.ndarray` with a shape would take a terabyte."""
    content = b"cnumpy\nndarray\n((I1000000\nI1000000\nttR."
    assert "damaged, or not a _seg.npy" in refused(pickled(content))


def test_a_number_in_the_memo_takes_no_memory() -> None:
    assert "damaged, or not a _seg.npy" in refused(pickled(b"Nr\xff\xff\xff\xff."))


def test_a_length_beyond_the_file() -> None:
    assert "damaged, or not a _seg.npy" in refused(
        pickled(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.")
    )
    assert "damaged" in refused(saved({"masks": MASKS})[:-20])


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_INSTRUCTIONS", 1000)
    assert "has more than 1000 instructions" in refused(pickled(b"(" + b"N" * 1000 + b"l."))


def test_a_key_whose_hash_takes_forever() -> None:
    doubled = b"".join(b"q%ch%c\x86" % (depth, depth) for depth in range(60))
    content = b"\x80\x02})" + doubled + b"Ns."
    assert "a key is neither a text nor a number" in refused(pickled(content))


@pytest.mark.parametrize(
    ("pickle_", "reason"),
    [
        (b"", "exhausted"),
        (b"N", "exhausted"),
        (b"\xff.", "unknown"),
        (b".", ""),
        (b"N.", ""),
        (b"l.", ""),
        (b"(Na.", ""),
        (b"NNb.", ""),
        (b"NNR.", ""),
        (b"g7\n.", ""),
        (b"N\x93.", ""),
        (b"NN\x93.", ""),
        (b"(Nd.", ""),
    ],
)
def test_a_damaged_pickle(pickle_: bytes, reason: str) -> None:
    line = refused(pickled(pickle_))
    assert line.startswith("a_seg.npy: damaged, or not a _seg.npy (")
    assert reason in line


@pytest.mark.parametrize(
    ("seg", "reason"),
    [
        ({"outlines": MASKS}, "'masks'"),
        ({"masks": None}, ""),
        ({"masks": MASKS.astype(float)}, "masks are not whole numbers"),
        ({"masks": MASKS.astype(object)}, "masks are not whole numbers"),
        ({"masks": MASKS.astype(bool)}, "masks are not whole numbers"),
        ([MASKS], ""),
        (np.array([{"masks": MASKS}] * 2, object), "an array, not a _seg.npy"),
        (MASKS, "an array, not a _seg.npy"),
    ],
)
def test_an_array_file_that_is_no_seg(seg: Any, reason: str) -> None:
    assert reason in refused(saved(seg))


def test_masks_that_do_not_fit() -> None:
    line = refused(saved({"masks": MASKS.T}))
    assert line.startswith("a_seg.npy: its masks are 3x2, but the image is 2x3. Give the image")
    assert "its masks are 1x2x3" in refused(saved({"masks": MASKS[None]}))
    assert "has negative masks" in refused(saved({"masks": -MASKS.astype(int)}))


@pytest.mark.parametrize(
    "content",
    [b"\x93NUMPY", b"\x93NUMPY\x03\0" + bytes(99), b"\x93NUMPY\x01\0\x05\0" + b"((((("],
)
def test_a_damaged_header(content: bytes) -> None:
    assert refused(content).startswith("a_seg.npy: damaged, or not a _seg.npy (")


def test_a_long_header_is_refused_in_one_line() -> None:
    header = b"{" + b" " * 60_000 + b"}"
    content = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header
    assert "damaged, or not a _seg.npy (Header info length" in refused(content)
