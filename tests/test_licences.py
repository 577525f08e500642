"""Every dependency has a licence that the project accepts; CONTRIBUTING.md lists them."""

import re
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CNRI-Python", "ISC"),
    *("MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib"),
}
WEAK_COPYLEFT = {"Artistic-1.0-Perl", "LGPL", "MPL-2.0"}
ACCEPTED = PERMISSIVE | WEAK_COPYLEFT

NAMES = {  # what metadata call a licence
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Artistic License": "Artistic-1.0-Perl",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "FreeBSD": "BSD-2-Clause",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
READ_BY_HAND = {  # metadata name no licence; this is what the file LICENSE says
    "atheris": "Apache-2.0",
    "bioimageio-spec": "MIT",
    "huey": "MIT",
    "namex": "Apache-2.0",
    "skops": "MIT",
}


def licence(distribution: Distribution) -> str:
    """The licence as an SPDX expression; several classifiers are a choice."""
    metadata = distribution.metadata
    if normalized(metadata["Name"]) in READ_BY_HAND:
        return READ_BY_HAND[normalized(metadata["Name"])]
    for expression in metadata.get_all("License-Expression", []):
        return str(expression)
    classifiers = [
        classifier.rpartition(" :: ")[2]
        for classifier in metadata.get_all("Classifier", [])
        if classifier.startswith("License :: ")
    ]
    texts = [text.strip().partition("\n")[0] for text in metadata.get_all("License", [])]
    found = classifiers or texts
    return " OR ".join(NAMES.get(name, name) for name in found)


def accepted(expression: str) -> bool:
    """Whether each part of an SPDX expression leaves the choice of an accepted licence."""
    parts = expression.split(" AND ")
    return all(any(name in ACCEPTED for name in part.strip(" ()").split(" OR ")) for part in parts)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: str) -> set[str]:
    """The distributions in a lock."""
    text = (ROOT / "requirements" / lock).read_text()
    return {normalized(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}


def test_an_expression_is_accepted_if_every_part_leaves_an_accepted_choice() -> None:
    assert accepted("MIT")
    assert accepted("MPL-2.0 AND (Apache-2.0 OR MIT)")
    assert accepted("Artistic-1.0-Perl OR GPL-2.0-or-later")
    assert not accepted("GPL-3.0-only")
    assert not accepted("MIT AND GPL-3.0-only")
    assert not accepted("")


def test_every_installed_dependency_has_an_accepted_licence() -> None:
    locks = [path.name for path in (ROOT / "requirements").glob("*.lock") if path.stem != "cuda"]
    names = set().union(*map(locked, locks))
    found = {
        name: licence(distribution)
        for distribution in distributions()
        if (name := normalized(distribution.metadata["Name"])) in names
    }
    assert len(found) > len(names) / 2
    refused = {name: licence for name, licence in found.items() if not accepted(licence)}
    assert refused == {}


def test_only_cuda_brings_packages_of_nvidias_licence() -> None:
    extra = locked("cuda.lock") - locked("cpu.lock")
    assert {name for name in extra if not name.startswith("nvidia-")} == set()
    bindings = {"nvidia-ml-py"}  # BSD: reads the figures of a GPU
    assert {name for name in locked("cpu.lock") if name.startswith("nvidia-")} == bindings


def test_contributing_lists_the_accepted_licences() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for name in sorted(ACCEPTED) if f"`{name}`" not in text] == []
