"""Number formats, and what happens to weights that live on their grids: usable in any training loop.

The formats need nothing but the standard library; everything else loads PyTorch when it is first named.
"""

import importlib
from typing import TYPE_CHECKING, Any

from altgrad.quantization.formats import (
    BF16,
    E0M7,
    E1M6,
    E2M5,
    E3M4,
    E4M3,
    E5M2,
    E6M1,
    E7M0,
    FORMAT_REGISTRY,
    FP8_FORMATS,
    FP16,
    FP32,
    WIDE_FORMATS,
    FP8Format,
)

if TYPE_CHECKING:
    from altgrad.quantization.diagnostics import BitStallDetector, detect_bit_stall, exponent_stiffness, stiffness
    from altgrad.quantization.fidelity import sqnr, values_used
    from altgrad.quantization.flip_metrics import WeightFlipTracker, compute_flip_rate, compute_stall_ratio
    from altgrad.quantization.kernels import FormatNumbers, format_numbers
    from altgrad.quantization.ops import (
        DequantizeFunc,
        QuantizeFunc,
        decode,
        dequantize,
        encode,
        grid_state,
        quantize,
        quantize_stochastic,
        random_bits,
        rung,
        step_rungs,
    )
    from altgrad.quantization.rank_health import (
        RankHealthMonitor,
        RankTrendDetector,
        SpectralStats,
        compute_effective_rank,
        compute_stable_rank,
        spectral_stats,
        spectrum,
    )
    from altgrad.quantization.scaling import (
        AmaxHistory,
        ScalingConfig,
        amax_scale,
        compute_scale,
        power_of_two_scale,
    )
    from altgrad.quantization.subspace import subspace_step

__all__ = [
    "BF16",
    "E0M7",
    "E1M6",
    "E2M5",
    "E3M4",
    "E4M3",
    "E5M2",
    "E6M1",
    "E7M0",
    "FORMAT_REGISTRY",
    "FP8_FORMATS",
    "FP16",
    "FP32",
    "WIDE_FORMATS",
    "AmaxHistory",
    "BitStallDetector",
    "DequantizeFunc",
    "FP8Format",
    "FormatNumbers",
    "QuantizeFunc",
    "RankHealthMonitor",
    "RankTrendDetector",
    "ScalingConfig",
    "SpectralStats",
    "WeightFlipTracker",
    "amax_scale",
    "compute_effective_rank",
    "compute_flip_rate",
    "compute_scale",
    "compute_stable_rank",
    "compute_stall_ratio",
    "decode",
    "dequantize",
    "detect_bit_stall",
    "encode",
    "exponent_stiffness",
    "format_numbers",
    "grid_state",
    "power_of_two_scale",
    "quantize",
    "quantize_stochastic",
    "random_bits",
    "rung",
    "spectral_stats",
    "spectrum",
    "sqnr",
    "step_rungs",
    "stiffness",
    "subspace_step",
    "values_used",
]

_TORCH_MODULES = ("ops", "scaling", "diagnostics", "fidelity", "flip_metrics", "rank_health", "subspace")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _TORCH_MODULES:
            module = importlib.import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
