"""What broadcasting would take for something else is refused."""

import pytest
import torch

from spherescan import calibration

pytestmark = pytest.mark.unwatched  # checks of types would refuse all of it first

P = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
Y = torch.tensor([0, 1, 1])
N = torch.arange(3.0)


@pytest.mark.parametrize(
    ("name", "arguments", "settings"),
    [
        ("fit_scale", (P, Y[:, None]), {}),
        ("fit_scale", (P, Y[:1]), {}),
        ("fit_scale", (P[0], Y), {}),
        ("fit_scale_and_bias", (P, Y[:, None]), {"smoothing": 0.1}),
        ("probabilities", (P, 1.0, torch.zeros(1)), {}),
        ("probabilities", (P, 1.0, torch.zeros(3, 1)), {}),
        ("expected_calibration_error", (P, Y[:1]), {}),
        ("reliability_table", (P, Y[:, None]), {}),
        ("set_threshold", (P, Y[:1]), {"coverage": 0.5}),
        ("class_thresholds", (P, Y[:1]), {"coverage": 0.5}),
        ("aps_scores", (P,), {"uniform": torch.rand(1)}),
        ("prediction_sets", (P, torch.rand(1)), {}),
        ("prediction_sets", (P, torch.rand(3, 1)), {}),
        ("fit_half_width", (torch.zeros(1), N), {"coverage": 0.5}),
        ("fit_half_width", (N[:, None], N), {"coverage": 0.5}),
        ("fit_half_width", (N, N), {"coverage": 0.5, "difficulty": torch.ones(1)}),
        ("intervals", (N[:, None], 1.0), {}),
        ("intervals", (N, 1.0), {"difficulty": torch.ones(1)}),
        ("conformal_quantile", (P,), {"coverage": 0.5}),
        ("known_threshold", (P,), {"rejection": 0.5}),
        ("auroc", (P, N), {}),
        ("auroc", (N, P), {}),
        ("open_set_curve", (N, torch.tensor([True]), N), {}),
        ("largest_score", (N,), {}),
        ("energy_score", (N,), {"scale": 1.0}),
        ("mean_directions", (torch.eye(2), Y[:1]), {"n_classes": 2}),
        ("shared_concentration", (torch.eye(2), Y[:1]), {}),
    ],
)
def test_another_shape_is_refused(name, arguments, settings):
    with pytest.raises(ValueError, match=r"shape .*; expected"):
        getattr(calibration, name)(*arguments, **settings)


@pytest.mark.parametrize(
    "target", [torch.tensor([0.9, 1.2, 1.9]), torch.tensor([True, False, True])]
)
@pytest.mark.parametrize("name", ["fit_scale", "expected_calibration_error"])
def test_targets_that_are_no_classes_are_refused(name, target):
    with pytest.raises(TypeError, match="classes are integers"):
        getattr(calibration, name)(P, target)
