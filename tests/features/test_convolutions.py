"""Fixed convolutions against loops, and what padding, batches and scales must not change."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spherescan.features import FixedFeatures, Hydra, MiniRocket, channel_statistics
from spherescan.features.minirocket import KERNELS
from spherescan.ops import native

KINDS = ("minirocket", "hydra")


@pytest.fixture(
    autouse=True,
    params=[
        "torch",
        pytest.param(
            "native",
            marks=pytest.mark.skipif(native.unavailable() is not None, reason="no native kernels"),
        ),
    ],
)
def form(request):
    """Each form, for whatever is computed in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPHERESCAN_OPS", request.param)
        yield request.param


def batch(lengths: list[int], c: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Series of small integers, of which every sum is exact, with rubbish behind the shorter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-8, 9, (len(lengths), max(lengths), c), generator=generator).float()
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(mask[:, :, None], x, 1e6), mask


def fitted(kind: str, x: torch.Tensor, mask: torch.Tensor) -> MiniRocket | Hydra:
    generator = torch.Generator().manual_seed(7)
    if kind == "hydra":
        return Hydra(x.shape[2], x.shape[1], n_groups=4, generator=generator)
    rocket = MiniRocket(x.shape[2], x.shape[1], n_features=5 * 84, generator=generator)
    rocket.fit(x, mask, generator=generator)
    return rocket


def value(series: np.ndarray, channels: list[int], at: int) -> float:
    return sum(series[at, c] for c in channels) if 0 <= at < len(series) else 0.0


@pytest.mark.unwatched
@pytest.mark.parametrize(("lengths", "c"), [([30, 30], 1), ([25, 9, 1], 3), ([4, 7], 1)])
def test_minirocket_is_what_loops_compute(lengths, c):
    x, mask = batch(lengths, c)
    rocket = fitted("minirocket", x, mask)
    features = rocket(x, mask)
    for row_of, length in enumerate(lengths):
        series, expected, at = x[row_of, :length].double().numpy(), [], 0
        for row, (dilation, count) in enumerate(zip(rocket.dilations, rocket.counts, strict=True)):
            for k, twos in enumerate(KERNELS):
                summed = rocket.channels[row, k, : rocket.n_summed[row, k]].tolist()
                weights = [2 if j in twos else -1 for j in range(9)]
                out = [
                    sum(w * value(series, summed, t + (j - 4) * dilation)
                        for j, w in enumerate(weights))
                    for t in range(length)
                ]  # fmt: skip
                reach = 4 * dilation
                if (row + k) % 2 and length > 2 * reach:
                    out = out[reach : length - reach]
                biases = rocket.biases[at : at + count].tolist()
                expected += [sum(o > bias for o in out) / len(out) for bias in biases]
                at += count
        np.testing.assert_allclose(features[row_of].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("lengths", "c"), [([30, 30], 1), ([25, 9, 1], 3), ([4, 7], 2)])
def test_hydra_is_what_loops_compute(lengths, c):
    x, mask = batch(lengths, c)
    hydra = fitted("hydra", x, mask)
    features = hydra(x, mask)
    for row_of, length in enumerate(lengths):
        whole, expected = x[row_of, :length].double().numpy(), []
        for row, dilation in enumerate(hydra.dilations):
            for view, series in enumerate((whole, np.diff(whole, axis=0))):
                for group in range(hydra.weights.shape[2]):
                    n = hydra.n_summed[row, view, group]
                    summed = hydra.channels[row, view, group, :n].tolist()
                    weights = hydra.weights[row, view, group].double().numpy()
                    most, least = np.zeros(8), np.zeros(8)
                    for t in range(len(series)):
                        seen = [value(series, summed, t + (j - 4) * dilation) for j in range(9)]
                        out = weights @ seen
                        most[out.argmax()] += max(out.max(), 0)
                        least[out.argmin()] += 1
                    expected += np.stack([most, least], 1).reshape(-1).tolist()
        squares = features[row_of].double().square().numpy()
        np.testing.assert_allclose(squares, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.unwatched
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), c=st.integers(1, 12))
def test_neither_padding_nor_the_batch_changes_the_features(kind, form, lengths, c):
    x, mask = batch(lengths, c)
    x = x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    features = fitted(kind, x, mask)
    together = features(x, mask)
    assert together.shape == (len(lengths), features.n_features)
    assert together.isfinite().all()
    for i, length in enumerate(lengths):
        assert torch.equal(features(x[i : i + 1], mask[i : i + 1])[0], together[i])
        alone = features(x[i : i + 1, :length], mask[i : i + 1, :length])[0]
        if kind == "minirocket" or form == "native":
            assert torch.equal(alone, together[i])
        else:  # torch rounds a sum of responses in another order
            torch.testing.assert_close(alone, together[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_does_not_say_where_series_end_is_refused(kind):
    x, mask = batch([20, 13], 2)
    features = fitted(kind, x, mask)
    gap, none = mask.clone(), mask.clone()
    gap[0, 5] = none[1] = False
    plain = getattr(type(features).forward, "__wrapped__", type(features).forward)
    for wrong, message in (
        (gap, "gaps"),
        (none, "without"),
        (mask[:1], "shape"),
        (mask.T, "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            plain(features, x, wrong)
    if isinstance(features, MiniRocket):
        with pytest.raises(ValueError, match="without"):
            features.fit(x, none, generator=torch.Generator())


@pytest.mark.parametrize("kind", KINDS)
def test_no_series_have_no_features(kind):
    x, mask = batch([20, 20], 2)
    features = fitted(kind, x, mask)
    assert features(x[:0], mask[:0]).shape == (0, features.n_features)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_and_the_sizes_are_all_there_is(kind):
    x, mask = batch([20, 13], 2)
    first = fitted(kind, x, mask)
    made = {
        "minirocket": lambda g: MiniRocket(2, 20, n_features=5 * 84, generator=g),
        "hydra": lambda g: Hydra(2, 20, n_groups=4, generator=g),
    }[kind](torch.Generator().manual_seed(99))
    assert not torch.equal(made(x, mask), first(x, mask))
    made.load_state_dict(first.state_dict())
    assert torch.equal(made(x, mask), first(x, mask))


def test_features_of_minirocket_do_not_depend_on_the_unit():
    x, mask = batch([50, 40, 30], 2)
    before = fitted("minirocket", x, mask)(x, mask)
    assert torch.equal(fitted("minirocket", 8 * x, mask)(8 * x, mask), before)
    assert ((before >= 0) & (before <= 1)).all()


def test_biases_are_quantiles_of_the_training_series():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 2000, 1, generator=generator)
    mask = torch.ones(1, 2000, dtype=torch.bool)
    rocket = MiniRocket(1, 2000, n_features=84 * 20, generator=generator)
    rocket.fit(x, mask, generator=generator)
    features, at = rocket(x, mask)[0], 0
    for row, count in enumerate(rocket.counts):
        for kernel in range(84):
            if (row + kernel) % 2 == 0:  # these see all positions, as the quantiles did
                for index in range(at, at + count):
                    above = 1 - (index + 1) * (1 + math.sqrt(5)) / 2 % 1
                    assert features[index] == pytest.approx(above, abs=1e-3)
            at += count


def test_hydra_counts_every_position_once_in_each_group():
    lengths = [30, 9, 1]
    x, mask = batch(lengths, 1)
    hydra = fitted("hydra", x, mask)
    counts = hydra(x, mask).square().reshape(3, len(hydra.dilations), 2, 2, 8, 2)[..., 1].sum(-1)
    for i, length in enumerate(lengths):
        assert counts[i, :, 0].flatten().tolist() == pytest.approx(
            [length] * counts[i, :, 0].numel()
        )
        assert counts[i, :, 1].flatten().tolist() == pytest.approx(
            [length - 1] * counts[i, :, 1].numel()
        )


def test_statistics_are_those_of_numpy():
    x, mask = batch([9, 1, 4], 2)
    found = channel_statistics(x, mask).reshape(3, 4, 2).double().numpy()
    for i, length in enumerate([9, 1, 4]):
        series = x[i, :length].double().numpy()
        spread = np.log(series.std(0) + 1e-6)
        expected = [series.mean(0), spread, series.max(0), series.min(0)]
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)


def test_a_state_of_more_channels_than_a_kernel_sees_is_refused():
    generator = torch.Generator().manual_seed(0)
    x, mask = batch([20, 13], 12)
    features = FixedFeatures(12, 20, n_features=84, n_groups=2, generator=generator)
    features.fit(x, mask, generator=generator)
    state = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    made = FixedFeatures.of_state(state, 20)
    assert torch.equal(made(x, mask), features(x, mask))
    for name in ("rocket.n_summed", "hydra.n_summed"):
        forged = state | {name: torch.full_like(state[name], 11)}
        with pytest.raises(ValueError, match=f"{name} holds a value"):
            FixedFeatures.of_state(forged, 20)


def test_sizes_that_make_no_sense_are_refused():
    generator = torch.Generator()
    for sizes in ((0, 5), (1, 0)):
        with pytest.raises(ValueError, match="must be >= 1"):
            MiniRocket(*sizes, generator=generator)
        with pytest.raises(ValueError, match="must be >= 1"):
            Hydra(*sizes, generator=generator)
    with pytest.raises(ValueError, match="at least 84"):
        MiniRocket(1, 5, n_features=83, generator=generator)
    with pytest.raises(ValueError, match="even"):
        Hydra(1, 5, n_groups=3, generator=generator)
