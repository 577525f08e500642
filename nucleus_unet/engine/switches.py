"""Environment variables that change the bits of what is computed."""

import os

SWITCHES = (
    *("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64"),
    *("NPY_DISABLE_CPU_FEATURES", "OPENCV_CPU_DISABLE", "OPENBLAS_CORETYPE"),
)
"""Environment variables that choose kernels, devices or precision."""
PLACEMENT = ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Those that only say which backend or device is used, which `device_kind` says exactly; Dask sets the
last one, and our kernels do not read it."""
DEFAULTS = {
    "KERAS_BACKEND": "tensorflow",
    # TensorFlow uses these kernels only on some processors, but they are faster on others too.
    "TF_ENABLE_ONEDNN_OPTS": "1",
}
"""What a computing process gets if the environment does not set the variable."""


def active_switches() -> dict[str, str]:
    """The `SWITCHES` that are set, with the values that a computing process gets."""
    values = {name: os.environ.get(name, DEFAULTS.get(name)) for name in SWITCHES}
    return {name: value for name, value in values.items() if value is not None}


def kernel_switches() -> dict[str, str]:
    """`active_switches` without `PLACEMENT`: another value means other bits on the same device."""
    return {name: value for name, value in active_switches().items() if name not in PLACEMENT}
