"""Peak figures of accelerators from their vendors' data sheets, and the devices that programs are compiled for."""

import dataclasses
from typing import NamedTuple

GIB = 1 << 30


class Peak(NamedTuple):
    """Dense floating-point operations per second of a device's matrix units, by the precision of the factors.

    Attributes:
      bfloat16: float16 where there is no bfloat16 (V100, T4).
      tf32: float32 rounded to TF32's 10 bits; None where there is no TF32.
      float32: without rounding; on TPUs, six passes of bfloat16 (XLA's precision "highest").
    """

    bfloat16: float
    tf32: float | None
    float32: float


def _tpu(bfloat16: float) -> Peak:
    return Peak(bfloat16, None, bfloat16 / 6)


# By the beginning of JAX's device kind. NVIDIA's data sheets; https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
PEAKS = {
    "NVIDIA H100": Peak(989e12, 494e12, 67e12),
    "NVIDIA H200": Peak(989e12, 494e12, 67e12),
    "NVIDIA A100": Peak(312e12, 156e12, 19.5e12),
    "Tesla V100": Peak(125e12, None, 15.7e12),
    "Tesla T4": Peak(65e12, None, 8.1e12),
    "NVIDIA L4": Peak(121e12, 60e12, 30.3e12),
    "TPU v2": _tpu(22.5e12),  # one core of two
    "TPU v3": _tpu(61.5e12),  # one core of two
    "TPU v4": _tpu(275e12),
    "TPU v5 lite": _tpu(197e12),
    "TPU v5p": _tpu(459e12),
    "TPU v6 lite": _tpu(918e12),
}


def peak_of(kind: str) -> Peak | None:
    """Returns the peak of a device by JAX's `device_kind`; None if it is not listed."""
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


@dataclasses.dataclass(frozen=True)
class Target:
    """A device, or a group of them, that programs can be compiled for without having it.

    Attributes:
      platform: "tpu" or "gpu".
      kind: a key of `PEAKS`.
      memory: bytes of a device that a program can use: a TPU's less what its runtime reserves; on a GPU the 75% that
        JAX allocates (XLA_PYTHON_CLIENT_MEM_FRACTION).
      bandwidth: of its memory, bytes per second.
      topology: name of the group of devices for the compiler.
      options: further arguments of `jax.experimental.topologies.get_topology_desc`.
      accelerator: what the environment variable TPU_ACCELERATOR_TYPE would be.
      has_bfloat16: whether its matrix units multiply bfloat16.
    """

    platform: str
    kind: str
    memory: int
    bandwidth: float
    topology: str
    options: dict = dataclasses.field(default_factory=dict)
    accelerator: str = ""
    has_bfloat16: bool = True

    @property
    def peak(self) -> Peak:
        """Its peak figures."""
        return PEAKS[self.kind]


def _v5e(topology: str, chips: tuple[int, int, int], accelerator: str) -> Target:
    # The compiler's limit is 15.75 of 16 GiB.
    options = {"chips_per_host_bounds": chips}
    return Target("tpu", "TPU v5 lite", int(15.75 * GIB), 819e9, topology, options, accelerator)


def _gpu(kind: str, bandwidth: float, *, has_bfloat16: bool = True, **properties: object) -> Target:
    properties |= {"memory_bandwidth": int(bandwidth)}
    described = _GPU.format(kind=kind, properties=" ".join(f"{key}: {value}" for key, value in properties.items()))
    memory = int(0.75 * int(str(properties["device_memory_size"])))
    options = {"target_config": described, "topology": "1x1x1"}
    beginning = next(name for name in PEAKS if kind.startswith(name))
    return Target("gpu", beginning, memory, bandwidth, kind, options, has_bfloat16=has_bfloat16)


# The text form of XLA's GpuTargetConfigProto; the rest of it are `cudaGetDeviceProperties`.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 {properties}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{kind}"
"""

TARGETS = {
    "tpu-v5e-1": _v5e("v5e:1x1x1", (1, 1, 1), "v5litepod-1"),
    "tpu-v5e-8": _v5e("v5e:2x4", (2, 4, 1), "v5litepod-8"),
    # Four chips of two cores, which share 16 GB and 700 GB/s; the compiler's limit is 7.48 GiB for each.
    "tpu-v2-8": Target("tpu", "TPU v2", int(7.48 * GIB), 350e9, "v2:2x2x1", accelerator="v2-8"),
    "gpu-t4": _gpu(
        "Tesla T4",
        320e9,
        has_bfloat16=False,
        cuda_compute_capability="{ major: 7 minor: 5 }",
        core_count=40,
        fpus_per_core=64,
        clock_rate_ghz=1.59,
        threads_per_core_limit=1024,
        shared_memory_per_core=65536,
        shared_memory_per_block_optin=65536,
        l2_cache_size=4 << 20,
        device_memory_size=15_843_721_216,
    ),
    "gpu-a100": _gpu(
        "NVIDIA A100-SXM4-40GB",
        1555e9,
        cuda_compute_capability="{ major: 8 minor: 0 }",
        core_count=108,
        fpus_per_core=64,
        clock_rate_ghz=1.41,
        threads_per_core_limit=2048,
        shared_memory_per_core=167936,
        shared_memory_per_block_optin=166912,
        l2_cache_size=40 << 20,
        device_memory_size=42_298_834_944,
    ),
    "gpu-h100": _gpu(
        "NVIDIA H100 80GB HBM3",
        3352e9,
        cuda_compute_capability="{ major: 9 minor: 0 }",
        core_count=132,
        fpus_per_core=128,
        clock_rate_ghz=1.98,
        threads_per_core_limit=2048,
        shared_memory_per_core=233472,
        shared_memory_per_block_optin=232448,
        l2_cache_size=50 << 20,
        device_memory_size=84_942_979_072,
    ),
}
