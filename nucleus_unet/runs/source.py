"""Which source code, packages and machine a run uses."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pynvml

from nucleus_unet.engine import active_switches
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import nvidia_gpus, usable_cores

# The same output whatever the user's git configuration is.
DIFF = ("diff", "--binary", "--no-ext-diff", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
OURS = ("nucleus_cli", "flows", "tasks", "nucleus_unet", "requirements", "pyproject.toml")
"""Files of the checkout whose changes are logged. Other files, such as settings, may hold a password."""
CPU_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
"""Flags of /proc/cpuinfo by which TensorFlow chooses its kernels."""


@dataclass(frozen=True)
class Source:
    """A revision of the repository."""

    commit: str
    """The commit's hash, or ``unknown`` if the package does not lie in a checkout."""
    diff: str
    """Uncommitted changes of `OURS` as a patch; empty if there are none."""


def checkout_source() -> Source:
    """Find the revision of the checkout that this package lies in.

    Raises
    ------
    NucleusError
        If git refuses, for example because the checkout belongs to another user, or if a changed file
        is not UTF-8 text.
    """
    if not shutil.which("git") or not _in_checkout():
        return Source("unknown", "")
    return Source(
        _git("rev-parse", "HEAD").strip(), _git(*DIFF, "HEAD", "--", *OURS) + _untracked()
    )


def installed_packages() -> list[str]:
    """Installed distributions, sorted, as ``name==version``."""
    return sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)


def requirements_lock() -> str | None:
    """Text of the locks that ``make install`` installed; None if the packages came from elsewhere."""
    locks = sorted(Path(sys.prefix).glob("installed-*.lock*"))
    return "".join(path.read_text() for path in locks) or None


def describe_machine() -> dict[str, str]:
    """Describe what bits and speed depend on, without loading Keras.

    Returns
    -------
    dict
        Python, operating system, C library, processor with its `CPU_FLAGS`, cores, GPUs with their
        driver, and the `active_switches` that are in force.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = (line.partition(":") for line in reversed(lines))  # the first processor wins
    cpu = {name.strip(): value.strip() for name, _, value in fields}
    flags = cpu.get("flags", "").split()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "C library": " ".join(platform.libc_ver()),
        "cpu": cpu.get("model name", platform.processor() or "unknown"),
        "cpu flags": " ".join(flag for flag in CPU_FLAGS if flag in flags),
        "cores": str(usable_cores()),
        "gpu": _gpus(),
        **active_switches(),
    }


def _gpus() -> str:
    """Names of the GPUs and their driver."""
    names = ", ".join(pynvml.nvmlDeviceGetName(handle) for handle in nvidia_gpus())
    return f"{names}, driver {pynvml.nvmlSystemGetDriverVersion()}" if names else "none"


def _in_checkout() -> bool:
    """Whether git knows this file. A checkout around it may be the checkout of something else."""
    listed = _run_git("ls-files", "--", __file__)
    if listed.returncode and b"not a git repository" in listed.stderr:
        return False
    return bool(_text(listed))


def _untracked() -> str:
    """Patches that add those of our files that git does not know yet."""
    files = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *OURS).split("\0")
    return "".join(
        _git(*DIFF, "--no-index", "/dev/null", file, allowed=(0, 1))
        for file in files
        if file.endswith((".py", ".pyi", ".toml"))
    )


def _git(*args: str, allowed: tuple[int, ...] = (0,)) -> str:
    return _text(_run_git(*args), allowed)


def _run_git(*args: str) -> subprocess.CompletedProcess[bytes]:
    command = ["git", "-C", str(Path(__file__).parents[2]), *args]
    return subprocess.run(command, capture_output=True, env=os.environ | {"LC_ALL": "C"})


def _text(done: subprocess.CompletedProcess[bytes], allowed: tuple[int, ...] = (0,)) -> str:
    try:
        output, reason = done.stdout.decode(), " ".join(done.stderr.decode().split())
    except UnicodeDecodeError as error:
        raise NucleusError(f"The revision of the source cannot be logged: {error}") from error
    if done.returncode in allowed:
        return output
    raise NucleusError(f"The revision of the source cannot be logged: {reason}")
