"""The figures of cards and of the links between them: one table, with its sources.

GPUs: peaks and memory of NVIDIA's data sheets (A100 SXM, H100 SXM, H200, HGX B200; dense, without sparsity), the
rest of a card's description from XLA's public device descriptions. NVLink: the same data sheets, one way. Between
hosts: one network adapter for each GPU as in NVIDIA's DGX systems, 200 Gbit/s (A100) or 400 Gbit/s (the others).
TPUs: https://jax-ml.github.io/scaling-book/tpus and https://cloud.google.com/tpu/docs; a link is both directions of one
axis of the torus. Times of kernels and messages are no data-sheet figures but typical ones: what a kernel costs at
least on a GPU, and a hop of NCCL or of the torus.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Card:
    """One device and its links; FLOP/s, bytes, bytes per second and seconds."""

    kind: str
    bf16: float  # FLOP/s of matrix products
    f32: float  # of float32 inputs at the default precision: TF32 on GPUs, one bfloat16 pass on TPUs
    f32_highest: float  # of the same at matmul_precision=highest
    memory: int
    bandwidth: float  # of the memory
    kernel_seconds: float
    link: float  # each way, to the others of a host (GPU) or along the torus (TPU)
    link_seconds: float  # of a hop
    host_link: float  # each way and device, to other hosts
    host_seconds: float
    per_host: int  # devices that `link` joins; 0: all

    def products(self, compute_dtype: str, precision: str) -> float:
        """FLOP/s of the matrix products of a run."""
        if compute_dtype == "bfloat16":
            return self.bf16
        if precision == "high":  # TPUs make three passes; GPUs keep TF32
            return self.f32 if self.per_host else self.f32 / 3
        return self.f32_highest if precision == "highest" else self.f32


def _gpu(kind: str, bf16: float, f32: float, f32_highest: float, memory: int, bandwidth: float, link: float,
         host_link: float) -> Card:  # fmt: skip
    return Card(kind, bf16, f32, f32_highest, memory, bandwidth, 3.5e-6, link, 1.0e-6, host_link, 5.0e-6, 8)


def _tpu(kind: str, bf16: float, memory: int, bandwidth: float, link: float) -> Card:
    return Card(kind, bf16, bf16, bf16 / 6, memory, bandwidth, 0.5e-6, link, 1.0e-6, link, 1.0e-6, 0)


CARDS = {
    "a100": _gpu("A100", 312e12, 156e12, 19.5e12, 85_100_068_864, 2.03904e12, 300e9, 25e9),
    "h100": _gpu("H100", 989e12, 494.5e12, 67e12, 84_942_979_072, 3.35232e12, 450e9, 50e9),
    "h200": _gpu("H200", 989e12, 494.5e12, 67e12, 151_397_597_184, 4.8e12, 450e9, 50e9),
    "b200": _gpu("B200", 2250e12, 1125e12, 75e12, 191_514_411_008, 7.67232e12, 900e9, 50e9),
    "v4": _tpu("TPU v4", 275e12, 32 << 30, 1.2e12, 9e10),
    "v5e": _tpu("TPU v5 lite", 197e12, 16 << 30, 8.1e11, 9e10),
    "v5p": _tpu("TPU v5", 459e12, 95 << 30, 2.8e12, 1.8e11),
    "v6e": _tpu("TPU v6 lite", 920e12, 32 << 30, 1.6e12, 1.8e11),
}

# By what jax calls those that are there. Each in full: an H100 PCIe, a GH200 or a part of a card (MIG) is another one.
_KINDS = {
    "NVIDIA A100-SXM4-80GB": CARDS["a100"],
    "NVIDIA A100-SXM4-40GB": dataclasses.replace(CARDS["a100"], memory=40 << 30, bandwidth=1.555e12),
    "NVIDIA H100 80GB HBM3": CARDS["h100"], "NVIDIA H200": CARDS["h200"], "NVIDIA B200": CARDS["b200"],
    "TPU v4": CARDS["v4"], "TPU v5 lite": CARDS["v5e"], "TPU v5e": CARDS["v5e"], "TPU v5": CARDS["v5p"],
    "TPU v5p": CARDS["v5p"], "TPU v6 lite": CARDS["v6e"], "TPU v6e": CARDS["v6e"],
}  # fmt: skip

# What XLA's GPU compiler wants to know of a card beyond that: how many cores of which kind, and their memories.
_COMMON = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
    "threads_per_core_limit": 2048, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
}  # fmt: skip
_GPUS: dict[str, dict[str, Any]] = {
    "a100": {"major": 8, "core_count": 108, "fpus_per_core": 64, "clock_rate_ghz": 1.41, "l2_cache_size": 41943040,
             "shared_memory_per_core": 167936, "shared_memory_per_block_optin": 166912},
    "h100": {"major": 9, "core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98, "l2_cache_size": 52428800,
             "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448},
    "h200": {"major": 9, "core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98, "l2_cache_size": 52428800,
             "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448},
    "b200": {"major": 10, "core_count": 148, "fpus_per_core": 128, "clock_rate_ghz": 1.965, "l2_cache_size": 132644864,
             "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448},
}  # fmt: skip


def gpu_description(name: str) -> str:
    """XLA's description of a GPU, a text-format protocol buffer (GpuTargetConfigProto)."""
    card, figures = CARDS[name], dict(_GPUS[name])
    major = figures.pop("major")
    figures |= {"memory_bandwidth": int(card.bandwidth), "device_memory_size": card.memory}
    fields = " ".join(f"{field}: {value}" for field, value in (_COMMON | figures).items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: 0 }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 8 } '
        f'device_description_str: "{card.kind}"'
    )


def find(device_kind: str) -> Card | None:
    """The card of a device that is there, by what jax calls it; None if it is not in the table."""
    return _KINDS.get(device_kind)
