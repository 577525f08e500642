"""The record of a run: what it was made from and what it made, as MLflow keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LoggedDataset:
    """A data set: where it was, and its files."""

    paths: Sequence[str]
    """Absolute paths of the raw data sets."""
    files: Sequence[Mapping[str, Any]]
    """As `dataset_files` lists them."""


@dataclass(frozen=True)
class Record:
    """What a run logged about itself."""

    run_id: str
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    machine: Mapping[str, str]
    """As `describe_machine` returns it."""
    packages: Mapping[str, str]
    """Name to version of each installed distribution."""
    commit: str
    """Revision of the source, or ``unknown``."""
    diff: str
    """Uncommitted changes of the working tree, as a patch."""
    data: Mapping[str, LoggedDataset]
    """By context: ``training`` and ``test``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric."""
    history: Sequence[Mapping[str, float]] = ()
    """The epochs of the training, if there was one."""
