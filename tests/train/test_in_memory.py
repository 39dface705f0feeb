import itertools

import pytest
import torch

from spherescan.data.augment import augmented, warped
from spherescan.nn import PrototypeHead, SequenceModel
from spherescan.train import in_memory
from spherescan.train.in_memory import Plan, Series, fit_series, steps_for

pytestmark = pytest.mark.unwatched


def waves(n=30, length=20):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(n) % 3
    t = torch.linspace(0, 6, length)
    x = torch.sin((1 + target[:, None]) * t) + 0.2 * torch.randn(n, length, generator=generator)
    mask = torch.arange(length) < torch.randint(10, length + 1, (n, 1), generator=generator)
    return Series(x[:, :, None] * mask[:, :, None], mask, target)


def model_of(seed=0):
    return SequenceModel(
        head=PrototypeHead(3, 3), n_channels=1, d_model=8, n_layers=1, bidirectional=True,
        n_convolutions=1, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def fitted(plan, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return fit_series(model_of(), waves(), plan, generator=generator, **more)


def accuracy(model, series):
    with torch.inference_mode():
        return (model(series.x, mask=series.mask).argmax(1) == series.target).float().mean()


def test_it_learns_and_the_same_seed_gives_the_same_bits():
    model, again, other = fitted(Plan(60)), fitted(Plan(60)), fitted(Plan(60), seed=1)
    assert not model.training
    assert accuracy(model, waves()) > 0.9
    states = [each.state_dict() for each in (model, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["projection.weight"], states[2]["projection.weight"])
    # The statistics are those of real positions.
    real = waves().x[waves().mask]
    assert torch.allclose(model.embedding.mean, real.mean(0))
    assert torch.equal(states[0]["head.weight"], PrototypeHead(3, 3).weight)


def test_the_weights_are_the_mean_of_the_last_ones():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_memory, "_AVERAGED_PART", 1e-9)
        last = fitted(Plan(100))
    mean = fitted(Plan(100))
    assert not torch.equal(mean.projection.weight, last.projection.weight)
    assert torch.allclose(mean.projection.weight, last.projection.weight, atol=0.05)


def test_time_that_is_up_ends_it_with_what_it_has(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(in_memory.time, "perf_counter", lambda: float(next(clock)))
    seen = []
    fitted(Plan(100, seconds=5.5), watch=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert all(loss > 0 for _, loss in seen)


def test_early_stopping_keeps_the_weights_of_the_smallest_loss(monkeypatch):
    held = waves(12)
    # Classes that are wrong: the longer it learns, the larger the loss.
    held = Series(held.x, held.mask, (held.target + 1) % 3)
    looks = []
    real = in_memory._Best.is_past

    def is_past(self, averaged):
        past = real(self, averaged)
        looks.append((self._loss, past))
        return past

    monkeypatch.setattr(in_memory._Best, "is_past", is_past)
    model = fitted(Plan(100, early_stopping=True), held_out=held)
    assert looks[-1][1]
    assert len(looks) < 20
    with torch.inference_mode():
        z = model.embed(held.x, mask=held.mask)
        loss = in_memory.prototype_softmax_loss(z, model.head.weight, held.target, scale=24.0)
    assert float(loss.mean()) == pytest.approx(looks[-1][0], rel=1e-5)


def test_a_set_gets_steps_by_its_size():
    assert [steps_for(n, batch_size=16) for n in (2, 400, 800, 10**6)] == [500, 500, 1000, 2500]


class TestAugmenting:
    def test_lengths_and_padding_stay(self):
        series = waves()
        changed = augmented(
            series.x, series.mask, torch.ones(1), generator=torch.Generator().manual_seed(0)
        )
        assert changed.shape == series.x.shape
        again = warped(series.x, series.mask, generator=torch.Generator().manual_seed(0))
        # No position behind the end is read: with other values there, all real ones are the same.
        other = series.x + 100 * ~series.mask[:, :, None]
        same = warped(other, series.mask, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again[series.mask], same[series.mask])

    def test_without_changes_of_speed_and_no_crop_nothing_changes(self):
        series = waves()
        same = warped(
            series.x, series.mask, speed=0.0, crop=0.0, generator=torch.Generator().manual_seed(0)
        )
        assert torch.allclose(same[series.mask], series.x[series.mask], atol=1e-5)

    def test_time_runs_forward_within_the_series(self):
        length, n = 50, 200
        ramp = torch.arange(length, dtype=torch.float32).expand(n, length)[:, :, None]
        mask = torch.ones(n, length, dtype=torch.bool)
        time = warped(ramp, mask, generator=torch.Generator().manual_seed(0))[:, :, 0]
        assert bool((time.diff(dim=1) > 0).all())
        assert time.min() >= 0
        assert time.max() <= length - 1
        shown = time[:, -1] - time[:, 0]
        assert float(shown.min()) >= 0.9 * (length - 1) - 1e-3
        assert float(shown.max()) > 0.99 * (length - 1)
        # Speeds differ by a fifth, as a standard deviation of their logarithm.
        assert 0.1 < float(time.diff(dim=1).log().std()) < 0.3

    @pytest.mark.parametrize("length", [1, 2])
    def test_the_shortest_series_are_taken(self, length):
        x = torch.randn(3, length, 2, generator=torch.Generator().manual_seed(0))
        mask = torch.ones(3, length, dtype=torch.bool)
        changed = augmented(x, mask, torch.ones(2), generator=torch.Generator().manual_seed(1))
        assert bool(changed.isfinite().all())
