"""Fixed features of series and of tokens, which no label is needed for: tensors in, tensors out."""

from spherescan.features.class_column import ClassColumn, added_cosine, class_column
from spherescan.features.fixed import FixedFeatures
from spherescan.features.hydra import Hydra
from spherescan.features.minirocket import MiniRocket
from spherescan.features.ngrams import NGrams, expect_vocabulary
from spherescan.features.ridge import Ridge, ridge
from spherescan.features.sphere_ridge import (
    SphereRidge,
    cosine_of_height,
    seen_from_below,
    sphere_ridge,
)
from spherescan.features.statistics import (
    LEAST_DEVIATION,
    N_STATISTICS,
    RunningStatistics,
    channel_statistics,
    unit_of,
)

__all__ = [
    "LEAST_DEVIATION",
    "N_STATISTICS",
    "ClassColumn",
    "FixedFeatures",
    "Hydra",
    "MiniRocket",
    "NGrams",
    "Ridge",
    "RunningStatistics",
    "SphereRidge",
    "added_cosine",
    "channel_statistics",
    "class_column",
    "cosine_of_height",
    "expect_vocabulary",
    "ridge",
    "seen_from_below",
    "sphere_ridge",
    "unit_of",
]
