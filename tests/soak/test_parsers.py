import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soak.parsers import PARSERS, accepts, mutated


def zip_with(name: bytes, local: bytes) -> bytes:
    """A zip file with one member, whose local name may differ from its name in the directory."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x" * len(name), b"Iout")
    return content.getvalue().replace(b"x" * len(name), local, 1).replace(b"x" * len(name), name)


FOUND = {
    "a member without a name": ("ROI", zip_with(b"\0", b"\0")),
    "a member whose second name is not UTF-8": ("zip", zip_with("ä.png".encode(), b"\xff" * 6)),
}
"""Files that once caused another error than a `NucleusError`."""


@pytest.mark.parametrize("name", PARSERS)
def test_valid_files_are_read(name: str) -> None:
    assert all(accepts(PARSERS[name].read, content) for content in PARSERS[name].files())


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.fault(
    "Bad input",
    "files of every kind that is read, with bytes changed at random",
    "read, or refused in one line",
)
def test_changed_files_are_read_or_refused(name: str, data: st.DataObject) -> None:
    files = PARSERS[name].files()
    content = data.draw(st.sampled_from(files))
    changed = mutated(content, lambda n: data.draw(st.integers(0, n - 1)))
    read = PARSERS[name].read
    assert accepts(read, changed) == accepts(read, changed)


@pytest.mark.parametrize("fault", FOUND)
@pytest.mark.fault(
    "Bad input",
    "files that fuzzing found",
    "refused in one line",
)
def test_faults_that_were_found_are_refused(fault: str) -> None:
    name, content = FOUND[fault]
    assert not accepts(PARSERS[name].read, content)
