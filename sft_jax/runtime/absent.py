"""Accelerators that are not in this machine: what compiling for them takes, and how to get them from the compiler.

XLA compiles for a TPU with the library libtpu alone and for an NVIDIA GPU with JAX's CUDA plugin and CUDA's own
compiler; both come as Python packages and need neither the device nor its driver.
"""

import importlib.metadata
import os

from sft_jax.config.shipped import install_command
from sft_jax.errors import UserError, reason
from sft_jax.runtime.chips import TARGETS

EXTRAS = {"tpu": "aot-tpu", "gpu": "aot-gpu"}
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin")}


def check_compiler(name: str) -> None:
    """Raises UserError if the packages that compile for target `name` are missing."""
    platform = TARGETS[name].platform
    if not any(map(_installed, _PACKAGES[platform])):
        raise UserError(
            f"--target {name} needs {' or '.join(_PACKAGES[platform])}, which is not installed: "
            f"{install_command(EXTRAS[platform])}"
        )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def environment(name: str) -> dict[str, str]:
    """Returns the environment variables of a process that compiles for target `name`, without using any device."""
    flags = os.environ.get("XLA_FLAGS", "")
    if TARGETS[name].platform == "gpu":
        # Without a GPU to time them on, XLA's own matrix products get tiles that may not fit; on one they are timed.
        flags += " --xla_gpu_enable_triton_gemm=false"
    return {
        "XLA_FLAGS": flags.strip(),
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # there is no driver to ask for its version
        "TPU_SKIP_MDS_QUERY": "1",  # nor a server that knows the TPU
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu locks out a second process, as if both used the TPU
        "TPU_ACCELERATOR_TYPE": TARGETS[name].accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def absent_devices(name: str):
    """Returns the `AbsentDevices` of target `name`; the process needs its `environment`.

    Raises:
      UserError: the compiler is missing or cannot be used.
    """
    check_compiler(name)
    from jax.experimental import topologies

    from sft_jax.runtime.devices import AbsentDevices

    target = TARGETS[name]
    try:
        topology = topologies.get_topology_desc(
            target.topology, {"gpu": "cuda"}.get(target.platform, target.platform), **target.options
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        raise UserError(f"--target {name}: the compiler cannot be started ({reason(error)})") from None
    return AbsentDevices(list(topology.devices), target.memory)
