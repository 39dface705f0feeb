"""The native fixed convolutions: the same bits as the torch form, and nothing else is taken."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spherescan.features import FixedFeatures, Hydra, MiniRocket
from spherescan.ops import native, native_fixed

pytestmark = pytest.mark.skipif(
    native.unavailable() is not None, reason="installed without native kernels"
)


def of_form(form: str, features: torch.nn.Module, *series: torch.Tensor) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPHERESCAN_OPS", form)
        return features(*series)


@pytest.mark.unwatched
@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    c=st.integers(1, 12),
    groups=st.sampled_from([1, 3, 9]),
    seed=st.integers(0, 1000),
)
@example(lengths=[8, 16, 64, 65], c=1, groups=1, seed=0)  # a kernel just does not fit, or does
@example(lengths=[2050, 1025], c=1, groups=17, seed=0)  # more than a stretch, and than a task
def test_every_level_decides_as_the_torch_form(lengths, c, groups, seed):
    """Shares and counts are decisions, and equal; sums of responses are rounded by each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max(lengths), c, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rocket = MiniRocket(c, max(lengths), n_features=84 * 7, generator=generator)
    rocket.fit(x, mask, generator=generator)
    hydra = Hydra(c, max(lengths), n_groups=2 * groups, generator=generator)
    shares, wins = (of_form("torch", features, x, mask) for features in (rocket, hydra))
    for level in range(native.best_simd() + 1):
        with native.forced_simd(level):
            assert torch.equal(of_form("native", rocket, x, mask), shares)
            found = of_form("native", hydra, x, mask)
        torch.testing.assert_close(found, wins, rtol=1e-6, atol=1e-6)
        counts, expected = (every.view(len(x), -1, 2)[..., 1] for every in (found, wins))
        assert torch.equal(counts, expected)


def test_ties_and_equal_values_are_decided_alike():
    """Small integers: many kernels of a group respond equally, many values equal a bias."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (3, 60, 1), generator=generator).float()
    mask = torch.ones(3, 60, dtype=torch.bool)
    rocket = MiniRocket(1, 60, n_features=84 * 9, generator=generator)
    rocket.fit(x, mask, generator=generator)
    hydra = Hydra(1, 60, n_groups=4, generator=generator)
    hydra.weights.copy_(torch.randint(-1, 2, hydra.weights.shape, generator=generator))
    for features in (rocket, hydra):
        assert torch.equal(
            of_form("native", features, x, mask), of_form("torch", features, x, mask)
        )


def test_threads_and_repeats_do_not_change_a_bit():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(5, 90, 3, generator=generator), torch.ones(5, 90, dtype=torch.bool)
    features = FixedFeatures(3, 90, n_features=168, n_groups=4, generator=generator)
    features.fit(x, mask, generator=generator)
    expected = features(x, mask)
    for threads in (1, 2, 3, 5, 8):
        torch.set_num_threads(threads)
        assert torch.equal(features(x, mask), expected)


def test_a_dilation_beyond_the_series_sees_one_tap():
    arguments = minirocket_arguments()
    arguments["x"].normal_(generator=torch.Generator().manual_seed(0))
    found = [arguments["out"].clone() for _ in range(2)]
    for out, dilation in zip(found, (10, 1 << 61), strict=True):
        native_fixed.minirocket(**(arguments | {"out": out, "dilation": dilation}))
    assert found[0].any()
    assert torch.equal(*found)


def test_long_series_are_fitted_a_few_kernels_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 60, 5, generator=generator)
    mask = torch.arange(60) < torch.tensor([60, 9, 1, 33])[:, None]
    biases = []
    for size in (1 << 20, 4 * 60 * 10, 1):
        monkeypatch.setattr("spherescan.features.minirocket.PIECE_BYTES", size)
        rocket = MiniRocket(5, 60, n_features=84 * 4, generator=generator.manual_seed(1))
        rocket.fit(x, mask, generator=generator)
        biases.append(rocket.biases)
    assert torch.equal(biases[0], biases[1])
    assert torch.equal(biases[0], biases[2])


def test_a_compiled_graph_takes_the_torch_form():
    generator = torch.Generator().manual_seed(0)
    hydra = Hydra(2, 30, n_groups=4, generator=generator)
    x, mask = torch.randn(1, 30, 2, generator=generator), torch.ones(1, 30, dtype=torch.bool)
    expected = of_form("torch", hydra, x, mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch.equal(hydra(x, mask), expected)


def test_gradients_and_float64_take_the_torch_form():
    generator = torch.Generator().manual_seed(0)
    hydra = Hydra(2, 30, n_groups=4, generator=generator)
    x, mask = torch.randn(1, 30, 2, generator=generator), torch.ones(1, 30, dtype=torch.bool)
    found = hydra(x, mask)
    torch.testing.assert_close(hydra(x.double(), mask), found)
    torch.testing.assert_close(hydra.double()(x, mask).float(), found)
    hydra.float()
    (gradient,) = torch.autograd.grad(hydra(x.requires_grad_(), mask)[found > 0].sum(), x)
    assert gradient.any()


def plain(function):
    """As users call it, without the checks of shapes that tests add."""
    return getattr(function, "__wrapped__", function)


def minirocket_arguments() -> dict:
    made = {"biases": torch.zeros(84, 2), "odd": False, "out": torch.zeros(2, 168)}
    return made | arguments_of_both(kernels=84)


def hydra_arguments() -> dict:
    made = {"weights": torch.zeros(5, 8, 9), "out": torch.zeros(2, 80)}
    return made | arguments_of_both(kernels=5)


def arguments_of_both(*, kernels: int) -> dict:
    return {
        "x": torch.zeros(2, 3, 10),
        "lengths": torch.tensor([10, 4]),
        "channels": torch.zeros(kernels, 3, dtype=torch.long),
        "n_summed": torch.ones(kernels, dtype=torch.long),
        "dilation": 1,
    }


CALLS = {
    "minirocket": (plain(native_fixed.minirocket), minirocket_arguments),
    "hydra": (plain(native_fixed.hydra), hydra_arguments),
}
BOTH_REFUSE = {
    "type": ({"x": torch.zeros(2, 3, 10).double()}, TypeError, "dtype"),
    "strides": ({"x": torch.zeros(2, 10, 3).transpose(1, 2)}, ValueError, "contiguous"),
    "empty": ({"x": torch.zeros(0, 3, 10)}, ValueError, "batch is 0"),
    "lengths": ({"lengths": torch.tensor([11, 4])}, ValueError, "lengths go from 4 to 11"),
    "below": ({"lengths": torch.tensor([10, -1])}, ValueError, "expected 0 to 10"),
    "many": ({"lengths": torch.tensor([10, 4, 1])}, ValueError, "lengths has shape"),
    "dilation": ({"dilation": 0}, ValueError, "dilation is 0"),
    "room": ({"out": torch.zeros(2, 79)}, ValueError, "out has shape"),
    "rows": ({"out": torch.zeros(168, 2).T}, ValueError, "out has"),
}


@pytest.mark.parametrize("kernel", CALLS)
@pytest.mark.parametrize("case", BOTH_REFUSE)
def test_wrong_calls_are_refused(kernel, case):
    call, arguments = CALLS[kernel]
    changed, error, message = BOTH_REFUSE[case]
    call(**arguments())
    with pytest.raises(error, match=message):
        call(**(arguments() | changed))


@pytest.mark.parametrize("kernel", CALLS)
@pytest.mark.parametrize(("name", "number"), [("channels", 3), ("n_summed", 4), ("n_summed", 0)])
def test_channels_that_are_not_there_are_refused(kernel, name, number):
    call, arguments = CALLS[kernel]
    made = arguments()
    made[name].view(-1)[0] = number
    with pytest.raises(ValueError, match=f"{name} go from"):
        call(**made)


@pytest.mark.parametrize("kernel", CALLS)
def test_where_it_reads_it_does_not_write(kernel):
    call, arguments = CALLS[kernel]
    made = arguments()
    out = made["out"]
    with pytest.raises(ValueError, match="out has strides"):
        call(**(made | {"out": out[:1].expand(out.shape)}))
    memory = torch.zeros(out.numel())
    with pytest.raises(ValueError, match="share memory"):
        call(**(made | {"out": memory.view_as(out), "x": memory[:60].view(2, 3, 10)}))


def test_other_numbers_of_kernels_are_refused():
    made = minirocket_arguments()
    made |= {name: made[name][:83] for name in ("channels", "n_summed", "biases")}
    with pytest.raises(ValueError, match=r"expected \(84,"):
        plain(native_fixed.minirocket)(**made)
    with pytest.raises(ValueError, match="weights has shape"):
        plain(native_fixed.hydra)(**(hydra_arguments() | {"weights": torch.zeros(4, 8, 9)}))
