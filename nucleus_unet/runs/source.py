"""Which source code is running, and with which packages."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nucleus_unet.errors import NucleusError

# Whatever the user's git is set to.
DIFF = ("diff", "--binary", "--no-ext-diff", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
OURS = ("nucleus_cli", "flows", "tasks", "nucleus_unet", "requirements", "pyproject.toml")
"""Of the checkout; a file of settings beside them may hold a password."""


@dataclass(frozen=True)
class Source:
    """A revision of the repository; `commit` is "unknown" where the package is not in a checkout."""

    commit: str
    diff: str
    """What the working tree has besides, of `OURS`, as a patch; empty where it is clean."""

    @property
    def dirty(self) -> bool:
        """Whether the working tree differs from the commit."""
        return bool(self.diff)


def checkout_source() -> Source:
    """The revision of the checkout that this package lies in.

    Raises
    ------
    NucleusError
        Git refuses to tell, as of a checkout that belongs to another user; or a change is no text.
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
    """The lock that the packages were installed from by ``make install``; None where they were not."""
    for path in Path(sys.prefix).glob("installed-*.lock"):  # one: the latest
        return path.read_text()
    return None


def _in_checkout() -> bool:
    """Whether git knows this file; a checkout around it may be one of something else."""
    try:
        return bool(_git("ls-files", "--", __file__))
    except NucleusError as error:
        if "not a git repository" in str(error):
            return False
        raise


def _untracked() -> str:
    """Patches that add the files of ours that git does not know yet."""
    files = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *OURS).split("\0")
    return "".join(
        _git(*DIFF, "--no-index", "/dev/null", file, allowed=(0, 1))
        for file in files
        if file.endswith((".py", ".toml"))
    )


def _git(*args: str, allowed: tuple[int, ...] = (0,)) -> str:
    command = ["git", "-C", str(Path(__file__).parents[2]), *args]
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    try:
        output, said = done.stdout.decode(), " ".join(done.stderr.decode().split())
    except UnicodeDecodeError as error:
        raise NucleusError(f"the source's revision cannot be logged: {error}") from error
    if done.returncode in allowed:
        return output
    raise NucleusError(f"the source's revision cannot be logged: {said}")
