"""Pure functions on tensors: the selective scan, the causal convolution, the residual norm.

Letters: b batch, l length, d channels, n state, k kernel width.
"""

from spherescan.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from spherescan.ops.linear import linear
from spherescan.ops.mamba_inner import mamba_inner
from spherescan.ops.rms_norm import add_rms_norm
from spherescan.ops.selective_scan import selective_scan, selective_scan_step

__all__ = [
    "add_rms_norm",
    "causal_conv1d",
    "causal_conv1d_step",
    "linear",
    "mamba_inner",
    "selective_scan",
    "selective_scan_step",
]
