"""GPU memory beyond a step's tensors: constants, each with its measurement, and DALI's buffers."""

import re

from data_pipeline.errors import UserError

MIB, GIB = 2**20, 2**30

# Bytes. What the driver had allocated beyond torch's reserve and DALI's batches: 1.0 to 1.2 GiB on an H100 with CUDA
# 13 and the kernels of torch, cuDNN and nvJPEG (tests/benchmarks/results/memory.json). Smaller GPUs may need less.
CUDA_CONTEXT = 1150 * MIB
# max_memory_reserved / max_memory_allocated - 1: 0.03 to 0.16 there, mean 0.08. The allocator splits blocks of 2 MiB
# and more; a gap too small for the next tensor stays empty.
FRAGMENTATION = 0.1
# Bytes. Memory pools of DALI and nvJPEG beside the batches: what the second stream of a stain GAN added there.
DALI_POOLS = 80 * MIB
# Pixels. Side of a decoded image where the data set is unknown: the larger of the public sets.
STORED_SIZE = 400

_UNITS = {"": GIB, "g": GIB, "gib": GIB, "gb": 10**9, "m": MIB, "mib": MIB, "mb": 10**6}


def parse_memory(text: str) -> int:
    """Bytes of `8GiB`, `8GB` (10^9 bytes each) or `8` (GiB). UserError for anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise UserError(f"gpu_memory={text}: write a size such as 8GiB, 24GB or 11000MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def dali_bytes(images: int, image_size: int, prefetch: int, *, augmentation_bytes: int, streams: int) -> int:
    """What loading takes beside the step: batches made ahead, and the graph's buffers of one batch.

    images: of a micro-batch. augmentation_bytes: `Augmentation.bytes_per_value` of all operations. By the graph in
    stream/pipeline.py: float32 batches, `prefetch` of them and one that is worked on; decoded and resized images
    in 8 bits.
    """
    pixels = 3 * image_size**2
    ahead = (prefetch + 1) * 4 * pixels
    worked_on = 3 * STORED_SIZE**2 + pixels + augmentation_bytes * pixels
    return streams * (images * (ahead + worked_on) + DALI_POOLS)
