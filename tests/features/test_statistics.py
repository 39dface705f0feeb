"""Statistics of channels while a series comes in."""

import pytest
import torch

from spherescan.features import RunningStatistics, channel_statistics


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
