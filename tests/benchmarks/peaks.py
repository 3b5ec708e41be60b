"""What a GPU can do at most, and what share of that a training does."""

import torch

from trainer.learners.choices import Precision

# Dense floating-point operations per second in 1e12, from the makers' data sheets, of half precision (fp16 and bf16
# with fp32 sums) and of fp32 (TF32 is off in torch's default for matrix products, on for convolutions).
_HALF = {
    "H200": 989.4,
    "H100 80GB HBM3": 989.4,
    "H100 PCIe": 756.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}


def peak_operations(device: torch.device, precision: Precision) -> float | None:
    """Floating-point operations per second of the device at most; None where it is not known."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    # The longest name that fits: an L40S is no L4.
    fitting = sorted((known for known in _HALF if known in name), key=len)
    return _HALF[fitting[-1]] * 1e12 if fitting else None


def utilization(
    multiply_accumulates: int, images_per_second: float, device: torch.device, precision: Precision
) -> dict[str, float | None]:
    """The model's floating-point operations as a share of the peak (MFU; Chowdhery et al. 2022, appendix B).

    multiply_accumulates: of one image's forward pass. One is two operations, and a backward pass costs twice its
    forward pass.
    """
    operations = 3 * 2 * multiply_accumulates
    peak = peak_operations(device, precision)
    return {
        "operations_per_image": operations,
        "achieved_tflops": round(operations * images_per_second / 1e12, 3),
        "peak_tflops": None if peak is None else peak / 1e12,
        "model_flops_utilization": None if peak is None else round(operations * images_per_second / peak, 4),
    }
