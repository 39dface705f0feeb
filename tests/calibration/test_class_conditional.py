import math

import pytest
import torch
from torch.nn import functional

from spherescan.calibration import (
    auroc,
    energy_score,
    largest_score,
    mean_directions,
    neighbour_cosine,
    shared_concentration,
)
from tests.calibration.draws import clusters, rand, randn, rotation, unit
from tests.tolerances import assert_close


def von_mises_fisher(centres, per_class, kappa, seed=0):
    """Draw from the distribution itself, in three dimensions, where its height has a formula."""
    target = torch.arange(len(centres)).repeat_interleave(per_class)
    u, axis = rand(len(target), seed=seed), centres[target]
    height = 1 + torch.log(u + (1 - u) * math.exp(-2 * kappa)) / kappa
    around = randn(len(target), 3, seed=seed + 1)
    around = functional.normalize(around - (around * axis).sum(1, keepdim=True) * axis, dim=1)
    return height[:, None] * axis + (1 - height.square()).clamp(min=0).sqrt()[
        :, None
    ] * around, target


def test_no_direction_is_nearer_to_a_class_on_the_average():
    z, target = clusters(unit(3, 5), 8, 0.5, seed=1)
    means = mean_directions(z, target, n_classes=3)
    assert_close(means.norm(dim=1), torch.ones(3))
    for j, mean in enumerate(means):
        best = (z[target == j] @ mean).sum()
        nearby = functional.normalize(mean + 0.1 * randn(50, 5, seed=2), dim=1)
        assert (z[target == j] @ nearby.T).sum(0).max() <= best


def test_rotating_everything_rotates_means_and_changes_no_score():
    z, target = clusters(unit(3, 5), 8, 0.5, seed=1)
    turn = rotation(5)
    assert_close(
        mean_directions(z @ turn, target, n_classes=3),
        mean_directions(z, target, n_classes=3) @ turn,
    )
    assert shared_concentration(z @ turn, target) == pytest.approx(shared_concentration(z, target))
    assert_close(
        neighbour_cosine(z @ turn, z[::2] @ turn, neighbours=2),
        neighbour_cosine(z, z[::2], neighbours=2),
    )


@pytest.mark.parametrize("kappa", [5.0, 20.0, 100.0])
@pytest.mark.parametrize("per_class", [2, 50])
def test_the_concentration_that_drew_the_embeddings_is_found(kappa, per_class):
    """Also from pairs, where the length of a class mean would be far too large."""
    centres = unit(4000 // per_class, 3, seed=3)
    z, target = von_mises_fisher(centres, per_class, kappa)
    assert shared_concentration(z, target) == pytest.approx(kappa, rel=0.06)
    assert shared_concentration(z.float(), target.int()) == pytest.approx(kappa, rel=0.06)


def test_energy_to_the_means_is_the_log_density_of_a_mixture():
    kappa, means, z = 7.0, unit(4, 3, seed=5), unit(20, 3, seed=6)
    density = (kappa / (4 * math.pi * math.sinh(kappa)) * (kappa * z @ means.T).exp()).mean(1)
    gap = density.log() - kappa * energy_score(z @ means.T, scale=kappa)
    assert_close(gap, gap[:1].expand(20))


def test_embeddings_no_nearer_than_chance_have_no_concentration():
    z, target = torch.eye(4), torch.tensor([0, 0, 1, 1])
    assert shared_concentration(z, target) == 0


def test_neighbours_are_found_by_looking_at_all():
    z, training = unit(1030, 4, seed=1).float(), unit(40, 4, seed=2)
    ranked = (z.double() @ training.T).sort(1, descending=True).values
    for neighbours in (1, 3, 40):
        found = neighbour_cosine(z, training, neighbours=neighbours)
        assert (found - ranked[:, neighbours - 1]).abs().max() < 1e-7
    assert_close(neighbour_cosine(training, training, neighbours=1), torch.ones(40))


def test_scores_of_where_classes_lie_beat_prototypes_they_miss():
    prototypes = torch.eye(8)[:3].double()
    landed = functional.normalize(prototypes + 0.9 * torch.eye(8)[3:6], dim=1)
    training, target = clusters(landed, 30, 0.1, seed=1)
    known, _ = clusters(landed, 60, 0.1, seed=2)
    # As near to the prototypes, on the other side.
    unknown, _ = clusters(
        functional.normalize(prototypes - 0.9 * torch.eye(8)[3:6], dim=1), 60, 0.1, seed=3
    )
    means = mean_directions(training, target, n_classes=3)
    by_prototype = auroc(largest_score(known @ prototypes.T), largest_score(unknown @ prototypes.T))
    assert by_prototype < 0.7
    for score in (
        lambda z: largest_score(z @ means.T),
        lambda z: energy_score(z @ means.T, scale=shared_concentration(training, target)),
        lambda z: neighbour_cosine(z, training, neighbours=3),
    ):
        assert auroc(score(known), score(unknown)) > 0.99


def test_a_class_without_a_direction_is_named():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="class 0 has 2 embeddings that cancel"):
        mean_directions(opposite, torch.tensor([0, 0, 1]), n_classes=2)
    with pytest.raises(ValueError, match="class 1 has 0 embeddings; it"):
        mean_directions(opposite, torch.tensor([0, 2, 2]), n_classes=3)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        mean_directions(opposite, torch.tensor([0, 2, 2]), n_classes=2)
    single = mean_directions(opposite[:1], torch.tensor([0]), n_classes=1)
    assert single.tolist() == [[1.0, 0.0]]


def test_a_concentration_that_cannot_be_known_is_refused():
    with pytest.raises(ValueError, match="each of 3 classes has one"):
        shared_concentration(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="infinite"):
        shared_concentration(unit(1, 5).repeat(4, 1).float(), torch.tensor([0, 0, 0, 0]))
    with pytest.raises(ValueError, match="one dimension"):
        shared_concentration(torch.ones(3, 1), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match=r"-1\.\."):
        shared_concentration(torch.eye(3), torch.tensor([0, -1, 0]))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(0, 3), "at least one"),
        (torch.tensor([[1.0, math.nan, 0.0]]), "finite"),
        (torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), r"row 1 .* length 2"),
        (torch.zeros(1, 3), "length 0"),
    ],
)
def test_what_is_not_on_the_sphere_is_refused(z, message):
    target = torch.zeros(len(z), dtype=torch.long)
    for call in (
        lambda: mean_directions(z, target, n_classes=1),
        lambda: shared_concentration(z, target),
        lambda: neighbour_cosine(z, torch.eye(3), neighbours=1),
        lambda: neighbour_cosine(torch.eye(3), z, neighbours=1),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("neighbours", [0, 4])
def test_neighbours_that_there_are_not_are_refused(neighbours):
    with pytest.raises(ValueError, match=r"must lie in 1\.\.3"):
        neighbour_cosine(torch.eye(3), torch.eye(3), neighbours=neighbours)
