"""What bits depend on beside recipe and data: the machine, and the switches of its arithmetic."""

import os
import platform
import sys
from pathlib import Path

from nucleus_unet.backend import usable_cores

CPU_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
"""Of /proc/cpuinfo: by them TensorFlow's kernels choose how they multiply and add."""
SWITCHES = (
    "KERAS_BACKEND",
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
"""Environment variables that change arithmetic."""


def environment() -> dict[str, str]:
    """Python, operating system, processor, GPUs with their driver, and the switches that are set.

    Imports no backend.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = dict(reversed([_field(line) for line in lines if ":" in line]))  # the first processor's
    flags = cpu.get("flags", "").split()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "C library": " ".join(platform.libc_ver()),
        "cpu": cpu.get("model name", platform.processor() or "unknown"),
        "cpu flags": " ".join(flag for flag in CPU_FLAGS if flag in flags),
        "cores": str(usable_cores()),
        "gpu": _gpus(),
        **{name: os.environ[name] for name in SWITCHES if name in os.environ},
    }


def lock() -> str | None:
    """The lock that the packages were installed from by ``make install``; None where they were not."""
    root = Path(__file__).parents[1]
    for mark in Path(sys.prefix).glob("installed-*.lock"):
        path = root / "requirements" / mark.name.removeprefix("installed-")
        if path.exists():
            return path.read_text()
    return None


def _gpus() -> str:
    """Names of the GPUs and their driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "none"
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    names = ", ".join(pynvml.nvmlDeviceGetName(handle) for handle in handles)
    return f"{names}, driver {pynvml.nvmlSystemGetDriverVersion()}"


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
