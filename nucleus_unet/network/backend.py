"""Settings of the Keras backend and of the machine: precision, threads, seeds, devices."""

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pynvml

from nucleus_unet.engine import active_switches
from nucleus_unet.errors import NucleusError
from nucleus_unet.files import locked, make_folder
from nucleus_unet.recipe import Recipe, Training

GPU_LIBRARIES = (
    *("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cublas-cu12", "nvidia-cudnn-cu13", "nvidia-cublas"),
)
"""Python distributions that contain the code that runs on a GPU."""


def resolve(recipe: Recipe) -> Recipe:
    """Replace each ``auto`` of a recipe by the value for this machine.

    This imports no Keras backend, so that a flow can call it before any work starts.
    """
    training = recipe.training
    resolved = {
        "precision": best_precision() if training.precision == "auto" else training.precision,
        "threads": usable_cores() if training.threads == "auto" else training.threads,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=resolved)})


def best_precision() -> str:
    """Choose the fastest dtype policy for this machine.

    Returns
    -------
    str
        On a GPU ``mixed_bfloat16`` from compute capability 8, ``mixed_float16`` from 7, ``float32``
        below. Without a GPU ``mixed_bfloat16`` on a CPU with AMX, ``float32`` on any other CPU.

    Notes
    -----
    On a CPU with AMX the 16-filter U-Net trains nearly twice as fast in bfloat16 as in float32. With
    AVX512-BF16 alone it is slower. Measured by ``benchmarks/training_step.py``.
    """
    if capability := gpu_compute_capability():
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "mixed_bfloat16" if "amx_bf16" in flags else "float32"


def gpu_compute_capability() -> tuple[int, int] | None:
    """Return the compute capability of the `used_gpu`, or None without a GPU."""
    gpu = used_gpu()
    return gpu and tuple(pynvml.nvmlDeviceGetCudaComputeCapability(gpu))


def gpu_name() -> str | None:
    """Return the name of the `used_gpu`, like ``NVIDIA H100 80GB HBM3``, or None without a GPU."""
    gpu = used_gpu()
    return gpu and str(pynvml.nvmlDeviceGetName(gpu))


def nvidia_gpus() -> list[Any]:
    """Return the NVML handles of all NVIDIA GPUs; an empty list without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def device_kind() -> dict[str, Any]:
    """Describe the device that decides the bits of a result, in addition to recipe and switches.

    Returns
    -------
    dict
        Keras backend with its version, name of the GPU and versions of its libraries.

    Raises
    ------
    NucleusError
        If the backend that KERAS_BACKEND names is not installed.
    """
    name = active_switches()["KERAS_BACKEND"]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise NucleusError(
            f"KERAS_BACKEND={name} is not installed. Install it or unset KERAS_BACKEND."
        ) from None
    gpu = gpu_name()
    libraries = _gpu_libraries() if gpu else {}
    return {"backend": f"{name} {version}", "gpu": gpu, **libraries}


def _gpu_libraries() -> dict[str, str]:
    """Versions of the `GPU_LIBRARIES` that are installed."""
    installed = {}
    for name in GPU_LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


@contextlib.contextmanager
def gpu_held(on_wait: Callable[[], None]) -> Iterator[None]:
    """Reserve the `used_gpu` for this process within the block; do nothing without a GPU.

    If another training of the same user holds the GPU, wait until it ends. Two trainings at once
    would slow each other down, or run out of memory.

    Parameters
    ----------
    on_wait : callable
        Called once if another training holds the GPU.

    Raises
    ------
    NucleusError
        If no lock file can be created in ``~/.cache/nucleus-unet``.
    """
    with contextlib.ExitStack() as held:
        if gpu := used_gpu():
            folder = Path.home() / ".cache" / "nucleus-unet"
            make_folder(folder, "Set HOME to a folder that you can write.")
            # The UUID tells apart the GPUs of machines that share this folder.
            held.enter_context(locked(folder / f"{pynvml.nvmlDeviceGetUUID(gpu)}.lock", on_wait))
        yield


def used_gpu() -> Any | None:
    """Return the NVML handle of the first GPU in CUDA_VISIBLE_DEVICES, or None without a GPU."""
    gpus = nvidia_gpus()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    for index, gpu in enumerate(gpus):
        if first and (first == str(index) or pynvml.nvmlDeviceGetUUID(gpu).startswith(first)):
            return gpu
    return gpus[0] if gpus and first.startswith("MIG-") else None  # MIG: a part of a GPU


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure(
    threads: int, seed: int = 0, precision: str = "float32", *, deterministic: bool = True
) -> None:
    """Set the global Keras options of this process; call it before anything else uses Keras.

    Parameters
    ----------
    threads : int
        Number of CPU threads inside an operation. Another number gives other bits.
    seed : int
        Seed of the initial weights and of dropout.
    precision : str
        Name of Keras' global dtype policy.
    deterministic : bool
        If True, use only kernels that give the same bits each time.
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
    elif deterministic:  # JAX reads XLA_FLAGS at its first computation
        flag, flags = "--xla_gpu_deterministic_ops=true", os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*flags, *([] if flag in flags else [flag])])
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)


def configure_training(settings: Training) -> None:
    """`configure` Keras as a resolved recipe says."""
    configure(
        settings.cpu_threads,
        settings.seed,
        settings.precision,
        deterministic=settings.deterministic,
    )


def synchronize(model: Any) -> None:
    """Update a model's variables in the middle of an epoch; JAX keeps them elsewhere until its end."""
    import keras

    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def hardware() -> dict[str, Any]:
    """Describe the hardware of a run: first GPU or else CPU, backend with its version, CPU cores."""
    import keras

    backend = keras.backend.backend()
    return {
        "device": str(keras.distribution.list_devices()[0]),  # such as gpu:0
        "backend": f"{backend} {__import__(backend).__version__}",
        "cores": usable_cores(),
    }
