"""What the program runs on, what does not work there, and what is slow and why."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import psutil

from nucleus_unet.engine import (
    active_switches,
    check_servers,
    home_folder,
    prepare_environment,
    without_credentials,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import bytes_text, file_states
from nucleus_unet.network import device_kind, nvidia_gpus, usable_cores
from nucleus_unet.network.backend import used_gpu
from nucleus_unet.network.speed import PREDICTED_PX, Speed
from nucleus_unet.recipe import Recipe
from nucleus_unet.runs.source import checkout_source, describe_machine

LITTLE_DISK_BYTES, LITTLE_MEMORY_BYTES = 2_000_000_000, 4_000_000_000
BUSY = 0.5
"""Share of the cores from which on other programs make a measurement too slow."""
SERVERS = {"Prefect server": "PREFECT_API_URL", "MLflow server": "MLFLOW_TRACKING_URI"}
NETWORK_FILE_SYSTEMS = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"),
    *("afs", "9p", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
)
CHECKS: Mapping[str, Callable[[], object]] = {
    "home": prepare_environment,
    "source": checkout_source,
    "backend": device_kind,
    **{name: partial(check_servers, variable) for name, variable in SERVERS.items()},
}
"""Each raises a `NucleusError` if the program does not work here. The first comes before the others."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Resources:
    """What a machine offers to this process."""

    cores: int
    all_cores: int
    core_limit: float | None
    """How many cores' time a container may use; None without a limit."""
    load: float
    """How many cores all programs used in the last minute."""
    memory_bytes: int
    """Available memory."""
    disk_bytes: int
    """Free disk space for the home."""
    file_system: str
    """Type of the file system of the home."""
    gpu: bool
    """Whether there is an NVIDIA GPU with a driver that CUDA_VISIBLE_DEVICES does not hide."""
    backend: str
    """Keras backend, for example ``tensorflow``."""
    cuda: bool
    """Whether CUDA's libraries are installed as Python packages."""
    databases: bool
    """Whether Prefect or MLflow keep an SQLite database in the home."""


def failed_checks() -> dict[str, str]:
    """The `CHECKS` that fail, each with what is wrong and what to do."""
    failed = {}
    for name, check in CHECKS.items():
        try:
            check()
        except NucleusError as error:
            failed[name] = str(error)
        if "home" in failed:
            break
    return failed


def read_resources(home: Path, cgroup: Path = _CGROUP) -> Resources:
    """Look at this machine.

    Parameters
    ----------
    home : Path
        An existing folder.
    cgroup : Path
        Where Linux shows the limits of the container (control groups, version 2).
    """
    memory, (limit, *_) = psutil.virtual_memory().available, _limits(cgroup / "memory.max")
    if limit:
        used, *_ = _limits(cgroup / "memory.current")
        memory = min(memory, int(limit - (used or 0)))
    quota, period = (*_limits(cgroup / "cpu.max"), None)[:2]
    packages = {one.name for one in metadata.distributions()}
    return Resources(
        cores=usable_cores(),
        all_cores=os.cpu_count() or 1,
        core_limit=quota / period if quota and period else None,
        load=os.getloadavg()[0],
        memory_bytes=memory,
        disk_bytes=psutil.disk_usage(str(home)).free,
        file_system=_file_system(home),
        gpu=used_gpu() is not None,
        backend=active_switches()["KERAS_BACKEND"],
        cuda=any(name.startswith("nvidia-cudnn") for name in packages),
        databases="PREFECT_API_URL" not in os.environ
        or os.environ.get("MLFLOW_TRACKING_URI", "").startswith("sqlite:"),
    )


def software_rows(failed: Mapping[str, str]) -> list[tuple[str, str]]:
    """Versions of the program and its packages, and the machine, as rows of a name and a value."""
    machine, backend = describe_machine(), active_switches()["KERAS_BACKEND"]
    code = None if "source" in failed else checkout_source()
    changed = " with uncommitted changes" if code and code.diff else ""
    revision = f"{code.commit[:12] if code else 'unknown'}{changed}"
    hidden = nvidia_gpus() and used_gpu() is None
    gpu = machine["gpu"] if machine["gpu"] != "none" else "none: no NVIDIA driver or no GPU"
    return [
        ("nucleus-unet", f"{_version('nucleus-unet')}, revision {revision}"),
        ("Python", f"{machine['python']} in {sys.prefix}"),
        ("Keras", f"{_version('keras')} with {backend} {_version(backend)}"),
        *((name, _version(name.lower())) for name in ("TensorFlow", "Prefect", "MLflow")),
        ("CPU", machine["cpu"]),
        ("cores", f"{machine['cores']} of {os.cpu_count()}"),
        ("GPU", f"{gpu}, hidden by CUDA_VISIBLE_DEVICES" if hidden else gpu),
    ]


def home_rows(found: Resources, failed: Mapping[str, str]) -> list[tuple[str, str]]:
    """Memory, home and servers as rows of a name and a value. No address shows a login."""
    home = home_folder()
    size = sum(state.st_size for state in file_states(home))
    rows = [
        ("memory", f"{bytes_text(found.memory_bytes)} available"),
        ("home", f"{home}, {bytes_text(size)} on {found.file_system}"),
        ("free disk", bytes_text(found.disk_bytes)),
    ]
    own = {None, f"sqlite:///{home}/mlflow.db"}
    for name, variable in SERVERS.items():
        address = os.environ.get(variable)
        state = "does not answer" if name in failed else "answers"
        if address in own:
            rows.append((name, "none: the database is in the home"))
        elif address and address.startswith("http"):
            rows.append((name, f"{without_credentials(address)}, {state}"))
        else:
            rows.append((name, without_credentials(str(address))))
    return rows


def findings(found: Resources, speed: Speed | None, recipe: Recipe) -> list[str]:
    """What is scarce or slow on a machine, why, and what to do.

    Parameters
    ----------
    found : Resources
    speed : Speed, optional
        As measured with the recipe.
    recipe : Recipe
    """
    said = [*_scarce(found), *_unused(found, speed)]
    if found.databases and found.file_system in NETWORK_FILE_SYSTEMS:
        said.append(
            f"SQLite databases on a network file system ({found.file_system}) are slow and may be "
            "damaged. Set NUCLEUS_HOME to a local disk, or use servers: see docs/team.md."
        )
    if speed:
        settings, where = recipe.training, "CPU" if speed.device.startswith("cpu") else "GPU"
        steps = settings.epochs * settings.steps_per_epoch
        said.append(
            f"Training with the recipe {recipe.name} takes about {_duration(steps * speed.step_s)} on "
            f"this {where}: {steps:,} steps of {speed.step_s:.2g} s. Predicting an image of "
            f"{PREDICTED_PX}×{PREDICTED_PX} pixels takes {speed.prediction_s:.2g} s."
        )
        if found.load > BUSY * found.cores:
            said.append(
                f"Other programs kept {found.load:.1f} cores busy, and this machine has {found.cores}, "
                "so these times are too long. Repeat nucleus doctor when they have ended."
            )
    return said


def _scarce(found: Resources) -> list[str]:
    said = []
    if found.disk_bytes < LITTLE_DISK_BYTES:
        said.append(
            f"Only {bytes_text(found.disk_bytes)} of disk space are free for the home. Free some with "
            "nucleus clean, or set NUCLEUS_HOME to a folder on another disk."
        )
    if found.memory_bytes < LITTLE_MEMORY_BYTES:
        said.append(
            f"Only {bytes_text(found.memory_bytes)} of memory are available. Stop other programs, or "
            "use smaller batches (training.batch_size, inference.batch_size)."
        )
    if found.core_limit and found.core_limit < found.cores:
        fit = max(1, int(found.core_limit))
        said.append(
            f"The container may use the time of {found.core_limit:g} cores, but {found.cores} threads "
            f"would share it. Train with --set training.threads={fit}, or raise the limit."
        )
    elif found.cores < found.all_cores:
        said.append(
            f"A container, taskset or a batch system limits this process to {found.cores} of "
            f"{found.all_cores} cores. More cores train faster."
        )
    if found.cores == 1:
        said.append("Only one core can be used. Training on two is nearly twice as fast.")
    return said


def _unused(found: Resources, speed: Speed | None) -> list[str]:
    """Why the GPU is not used."""
    if not (found.gpu and speed and speed.device.startswith("cpu")):
        return []
    if found.backend != "tensorflow":
        why = f"{found.backend} was installed without CUDA. Install {found.backend} for CUDA"
    elif not found.cuda:
        why = "TensorFlow was installed without CUDA's libraries. Run make install"
    else:
        why = (
            "TensorFlow does not support it, perhaps because it is too new, or the driver is too old. "
            "Update the driver, or install JAX for CUDA and set KERAS_BACKEND=jax"
        )
    return [f"The GPU is not used: {why}."]


def _limits(path: Path) -> list[float | None]:
    """Numbers of a file of a control group; None for ``max``. A single None without the file."""
    if not path.exists():
        return [None]
    return [None if word == "max" else float(word) for word in path.read_text().split()]


def _file_system(folder: Path) -> str:
    """Type of the file system that a folder lies on."""
    place = folder.resolve()
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[p] for p in (place, *place.parents) if p in mounts), "unknown")


def _version(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "(not installed)"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes > 120:
        return f"{seconds / 3600:.1f} hours"
    return f"{minutes} minutes" if minutes > 1 else "a minute"
