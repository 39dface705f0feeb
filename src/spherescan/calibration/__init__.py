"""Calibration: from cosines to decisions.

How sure (`temperature`, `reliability`), known or not (`open_set`, `class_conditional`), which
classes or numbers with what guarantee (`conformal`), and classes that come later (`new_classes`).
Functions of tensors; what they fit is a number or a tensor, and everything is computed in float64.
"""

from spherescan.calibration.class_conditional import (
    mean_directions,
    neighbour_cosine,
    shared_concentration,
)
from spherescan.calibration.conformal import (
    aps_scores,
    class_thresholds,
    fit_half_width,
    intervals,
    lac_scores,
    prediction_sets,
    set_threshold,
)
from spherescan.calibration.new_classes import (
    NewClass,
    append_cosines,
    class_direction,
    place_class,
    separated_direction,
)
from spherescan.calibration.open_set import (
    OpenSetCurve,
    auroc,
    energy_score,
    known_threshold,
    largest_probability,
    largest_score,
    open_set_curve,
)
from spherescan.calibration.order_statistic import conformal_quantile
from spherescan.calibration.reliability import (
    ReliabilityTable,
    expected_calibration_error,
    reliability_table,
)
from spherescan.calibration.temperature import (
    LARGEST_SCALE,
    ScaleAndBias,
    fit_scale,
    fit_scale_and_bias,
    laplace_smoothing,
    probabilities,
)

__all__ = [
    "LARGEST_SCALE",
    "NewClass",
    "OpenSetCurve",
    "ReliabilityTable",
    "ScaleAndBias",
    "append_cosines",
    "aps_scores",
    "auroc",
    "class_direction",
    "class_thresholds",
    "conformal_quantile",
    "energy_score",
    "expected_calibration_error",
    "fit_half_width",
    "fit_scale",
    "fit_scale_and_bias",
    "intervals",
    "known_threshold",
    "lac_scores",
    "laplace_smoothing",
    "largest_probability",
    "largest_score",
    "mean_directions",
    "neighbour_cosine",
    "open_set_curve",
    "place_class",
    "prediction_sets",
    "probabilities",
    "reliability_table",
    "separated_direction",
    "set_threshold",
    "shared_concentration",
]
