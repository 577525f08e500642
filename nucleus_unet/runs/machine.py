"""What bits depend on beside recipe and data: the machine, and the switches of its arithmetic."""

import platform
from pathlib import Path

from nucleus_unet.network.backend import nvidia_gpus, switches, usable_cores

CPU_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
"""Of /proc/cpuinfo: by them TensorFlow's kernels choose how they multiply and add."""


def describe_machine() -> dict[str, str]:
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
        **switches(),
    }


def _gpus() -> str:
    """Names of the GPUs and their driver."""
    import pynvml

    names = ", ".join(pynvml.nvmlDeviceGetName(handle) for handle in nvidia_gpus())
    return f"{names}, driver {pynvml.nvmlSystemGetDriverVersion()}" if names else "none"


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
