"""What XLA must know of a GPU to compile for it without having it: from NVIDIA's data sheets and CUDA's tables."""

# {chip: (multiprocessors, float32 units of each, its shared memory, that of a block, L2 cache, bytes, bytes/s, GHz,
#  compute capability, name)}, of the SXM versions.
_GPUS = {
    "a100-80g": (108, 64, 167936, 166912, 41943040, 85100068864, 2.039e12, 1.41, "major: 8", "A100-SXM4-80GB"),
    "h100": (132, 128, 233472, 232448, 52428800, 84942979072, 3.352e12, 1.98, "major: 9", "H100 80GB HBM3"),
    "h200": (132, 128, 233472, 232448, 52428800, 151397597184, 4.8e12, 1.98, "major: 9", "H200 141GB HBM3e"),
    "b200": (148, 128, 233472, 232448, 132644864, 191514411008, 7.672e12, 1.965, "major: 10", "B200"),
}
PLUGINS = "jax_cuda12_plugin", "jax_cuda13_plugin"  # with one of them JAX can compile for GPUs


def target(chip: str) -> str:
    """The description of a chip of `chips.CHIPS`, as XLA's GpuTargetConfigProto in text form."""
    cores, units, shared, block, cache, memory, bandwidth, clock, capability, name = _GPUS[chip]
    extension = "" if capability == "major: 8" else " feature_extension: ACCELERATED_FEATURES"
    return f"""
gpu_device_info {{
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {block} shared_memory_per_block: 49152
  l2_cache_size: {cache} device_memory_size: {memory} memory_bandwidth: {bandwidth:.0f}
  cuda_compute_capability {{ {capability}{extension} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""
