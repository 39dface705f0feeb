"""Pure functions on tensors: the selective scan and the causal convolution.

Letters: b batch, l length, d channels, n state, k kernel width.
"""

from spherescan.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from spherescan.ops.selective_scan import selective_scan, selective_scan_step

__all__ = ["causal_conv1d", "causal_conv1d_step", "selective_scan", "selective_scan_step"]
