import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("c*.lock"))
EXTRAS = [
    ROOT / "requirements" / f"{extra}.lock" for extra in ("export", "microscopy", "peers", "soak")
]
# name==version, perhaps a marker, and then nothing but hashes
REQUIREMENT = re.compile(
    r"[a-z0-9][a-z0-9._-]*==[^\s;]+( ; [^\\\n]+)?( \\\n {4}--hash=sha256:[0-9a-f]{64})+"
)

each_lock = pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
each_extra = pytest.mark.parametrize("extra", EXTRAS, ids=lambda path: path.name)
each_lock_or_extra = pytest.mark.parametrize("lock", [*LOCKS, *EXTRAS], ids=lambda path: path.name)


def name_of(requirement: str) -> str:
    """The normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


def requirements(lock: Path) -> list[str]:
    """Each requirement with its hashes."""
    return re.split(r"\n(?=\S)", lock.read_text().strip())


def test_there_is_a_lock_for_the_cpu_for_cuda_and_for_each_extra() -> None:
    assert [lock.name for lock in LOCKS] == ["cpu.lock", "cuda.lock"]
    assert sorted((ROOT / "requirements").iterdir()) == [*LOCKS, *EXTRAS]
    extras = re.search(r"^ALL_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert extras
    assert sorted(extras[1].split()) == [lock.stem for lock in EXTRAS]


@each_lock_or_extra
def test_every_requirement_is_pinned_and_has_hashes(lock: Path) -> None:
    assert [r for r in requirements(lock) if not REQUIREMENT.fullmatch(r)] == []


@each_lock_or_extra
def test_the_lock_names_no_host_and_no_path(lock: Path) -> None:
    text = lock.read_text()
    assert [mark for mark in ("://", "index", " @ ", "file:", "/") if mark in text] == []


@each_lock
def test_the_lock_has_all_that_the_project_asks_for(lock: Path) -> None:
    project = PROJECT["project"]
    asked = project["dependencies"] + PROJECT["dependency-groups"]["dev"]
    asked += [
        *project["optional-dependencies"]["dask"],
        *project["optional-dependencies"]["server"],
    ]
    locked = {name_of(requirement) for requirement in requirements(lock)}
    assert {name_of(requirement) for requirement in asked} - locked == set()


@each_extra
def test_the_lock_of_an_extra_adds_to_the_others(extra: Path) -> None:
    added = {name_of(requirement) for requirement in requirements(extra)}
    asked = {name_of(name) for name in PROJECT["project"]["optional-dependencies"][extra.stem]}
    assert asked - added == set()
    for lock in {*LOCKS, *EXTRAS} - {extra}:
        assert added & {name_of(requirement) for requirement in requirements(lock)} == set()


def test_every_package_and_every_recipe_is_packaged() -> None:
    from setuptools import find_packages

    setuptools = PROJECT["tool"]["setuptools"]
    found = [
        path
        for top in ("nucleus_cli", "flows", "tasks", "nucleus_unet")
        for path in ROOT.glob(f"{top}/**/*")
    ]
    folders = {
        suffix: {".".join(p.parent.relative_to(ROOT).parts) for p in found if p.suffix == suffix}
        for suffix in (".py", ".toml", ".keras", ".json", ".md")
    }
    assert set(find_packages(str(ROOT), **setuptools["packages"]["find"])) == folders[".py"]
    data = {"*": ["*.pyi", "py.typed"], **{name: ["*.toml"] for name in folders[".toml"]}}
    [builtin] = folders[".keras"] | folders[".json"] | folders[".md"]
    data |= {builtin: ["*.keras", "*.json", "*.md"]}
    assert setuptools["package-data"] == data


def test_the_command_exists() -> None:
    module, _, name = PROJECT["project"]["scripts"]["nucleus"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def deployments() -> list[dict[str, Any]]:
    import yaml

    deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    return deployed["deployments"]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_each_deployment_names_a_flow_whose_form_tells_of_each_field(
    deployment: dict[str, Any],
) -> None:
    from prefect import Flow
    from prefect.utilities.callables import parameter_schema

    path, _, name = deployment["entrypoint"].partition(":")
    module = ".".join(Path(path).with_suffix("").parts)
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow)
    # Prefect's run form takes them from the docstring, in Google's style alone.
    fields = parameter_schema(flow.fn).properties
    assert [key for key, field in fields.items() if not field.get("description")] == []


def test_the_deployments_were_written_for_the_locked_prefect() -> None:
    import yaml

    version = yaml.safe_load((ROOT / "prefect.yaml").read_text())["prefect-version"]
    assert f"prefect=={version}" in {r.split()[0] for lock in LOCKS for r in requirements(lock)}
