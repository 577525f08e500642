"""What the device and the Keras backend must do themselves: precision, threads, seeds, devices."""

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, make_folder
from nucleus_unet.recipe import Recipe

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
GPU_LIBRARIES = (
    *("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cublas-cu12", "nvidia-cudnn-cu13", "nvidia-cublas"),
)
"""Distributions that compute on a GPU."""


def resolve(recipe: Recipe) -> Recipe:
    """Replace every ``auto`` by what this machine gives, so that the recipe decides alone.

    Imports no backend: it is called where the flow runs, before any work starts.
    """
    training = recipe.training
    resolved = {
        "precision": best_precision() if training.precision == "auto" else training.precision,
        "threads": usable_cores() if training.threads == "auto" else training.threads,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=resolved)})


def best_precision() -> str:
    """``mixed_bfloat16`` where the GPU or the CPU multiplies matrices of bfloat16 in hardware.

    ``mixed_float16`` on GPUs of compute capability 7, ``float32`` elsewhere. On a CPU with AMX the
    16-filter U-Net trains nearly twice as fast as in float32; with AVX512-BF16 alone it is slower
    (``benchmarks/training_step.py``).
    """
    if capability := gpu_compute_capability():
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "mixed_bfloat16" if "amx_bf16" in flags else "float32"


def gpu_compute_capability() -> tuple[int, int] | None:
    """The compute capability of the `used_gpu`; None where there is none."""
    import pynvml

    gpu = used_gpu()
    return gpu and tuple(pynvml.nvmlDeviceGetCudaComputeCapability(gpu))


def gpu_name() -> str | None:
    """The name of the `used_gpu`, as ``NVIDIA H100 80GB HBM3``; None where there is none."""
    import pynvml

    gpu = used_gpu()
    return gpu and str(pynvml.nvmlDeviceGetName(gpu))


def nvidia_gpus() -> list[Any]:
    """NVML's handles of the GPUs; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def switches() -> dict[str, str]:
    """The `SWITCHES` that are set in this process."""
    return {name: os.environ[name] for name in SWITCHES if name in os.environ}


def device_kind() -> dict[str, Any]:
    """What bits depend on beside the recipe: Keras backend, GPU and its libraries, switches.

    Raises
    ------
    NucleusError
        The backend that KERAS_BACKEND names is not installed.
    """
    name = os.environ.get("KERAS_BACKEND", "tensorflow")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise NucleusError(
            f"KERAS_BACKEND={name} is not installed here: install it, or unset the variable"
        ) from None
    # Backend and gpu say what the first two do; Dask sets the third, which our kernels do not read.
    passed_over = ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    others = {key: value for key, value in switches().items() if key not in passed_over}
    gpu = gpu_name()
    libraries = _gpu_libraries() if gpu else {}
    return {"backend": f"{name} {version}", "gpu": gpu, **libraries, **others}


def _gpu_libraries() -> dict[str, str]:
    """The version of each of `GPU_LIBRARIES` that is installed."""
    installed = {}
    for name in GPU_LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


@contextlib.contextmanager
def gpu_held(on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the `used_gpu`; a training of the same user that is on it is waited for.

    Two would slow each other, or run out of memory.

    Raises
    ------
    NucleusError
        There can be no locks in the user's own folder.
    """
    import pynvml

    with contextlib.ExitStack() as held:
        if gpu := used_gpu():
            folder = Path.home() / ".cache" / "nucleus-unet"
            make_folder(folder, "set HOME to a folder that can be written")
            # Machines that share the folder have other GPUs.
            held.enter_context(locked(folder / f"{pynvml.nvmlDeviceGetUUID(gpu)}.lock", on_wait))
        yield


def used_gpu() -> Any | None:
    """NVML's handle of the GPU that is computed on, the first of CUDA_VISIBLE_DEVICES; None for none."""
    import pynvml

    gpus = nvidia_gpus()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    for index, gpu in enumerate(gpus):
        if first and (first == str(index) or pynvml.nvmlDeviceGetUUID(gpu).startswith(first)):
            return gpu
    return gpus[0] if gpus and first.startswith("MIG-") else None  # a part of some GPU


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure(
    threads: int, seed: int = 0, precision: str = "float32", *, deterministic: bool = True
) -> None:
    """Set what is global to a process; the first thing that a process does with Keras.

    Parameters
    ----------
    threads : int
        CPU threads inside an operation. Another number gives other bits.
    seed : int
        Seed of Keras' initial weights and dropout.
    precision : str
        Name of Keras' global dtype policy.
    deterministic : bool
        Take only kernels that give the same bits each time.
    """
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    elif deterministic:  # JAX reads it when it first computes
        flag, flags = "--xla_gpu_deterministic_ops=true", os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*flags, *([] if flag in flags else [flag])])
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)


def device() -> str:
    """What the backend computes on, as ``gpu:0``: the first GPU that it sees, or the CPU."""
    import keras

    return str(keras.distribution.list_devices()[0])


def synchronize(model: Any) -> None:
    """Bring a model's variables up to date in the middle of an epoch, where the backend keeps them."""
    import keras

    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def hardware() -> dict[str, Any]:
    """What decides bits and speed of a run: device, backend and its version, cores."""
    import keras

    backend = keras.backend.backend()
    return {
        "device": device(),
        "backend": f"{backend} {__import__(backend).__version__}",
        "cores": usable_cores(),
    }
