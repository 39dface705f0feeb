"""Statistics of channels while a series comes in."""

import pytest
import torch

from spherescan.features import RunningStatistics, channel_statistics, unit_of


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (0, 5, 0, 2), (40, 1), (7, 13, 30)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_pieces_have_the_statistics_of_the_whole(sizes, offset):
    generator = torch.Generator().manual_seed(sum(sizes))
    x = offset + torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64)
    running = RunningStatistics.of_nothing(3)
    begin = 0
    for size in sizes:
        running = running.extended(x[begin : begin + size])
        begin += size
        if begin:
            whole = channel_statistics(x[None, :begin], torch.ones(1, begin) > 0)
            torch.testing.assert_close(running.values(), whole, atol=1e-9, rtol=0)
    assert running.n == sum(sizes)
    assert running.tensors()["largest"].tolist() == x.amax(0).tolist()


@pytest.mark.parametrize("n", [1, 10, 1000, 3000])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.7, 20.1, -1e-9, 1e30, 1e-300])
def test_the_unit_of_a_channel_that_never_moves_is_its_size(n, value):
    """The mean of equal values is rarely that value: their deviation is rounding, not 0."""
    values = torch.full((n, 1), value, dtype=torch.float64)
    assert unit_of(values) == (abs(value) or 1)
    values[0] *= 1 + 2**-52
    assert unit_of(values).item() == pytest.approx(abs(value) or 1, rel=1e-15)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("level", [0.0, 1e6])
def test_the_unit_is_the_deviation(size, level, generator):
    values = size * (level + torch.randn(500, 2, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(unit_of(values), size * (values / size).std(0, correction=0))
