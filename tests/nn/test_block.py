import functools

import pytest
import torch

from spherescan.nn import Block, Mamba
from spherescan.nn.block import _take, reversal, reversed_resets
from tests.tolerances import assert_close


@pytest.fixture(params=[False, True], ids=["forward", "bidirectional"])
def block(request, generator):
    make = functools.partial(Mamba, d_state=3)
    return Block(4, mixer=make, bidirectional=request.param, generator=generator).double()


def after(block, x, **options):
    """Return the residual stream with the update of the block added."""
    stream, update = block(x, **options)
    assert torch.equal(stream, x)
    return stream + update


def test_padding_does_not_reach_the_real_positions(block, generator):
    x = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[5], [9]])
    y = after(block, x, mask=mask)
    x[0, 5:] = 100.0
    assert torch.equal(after(block, x, mask=mask)[mask], y[mask])
    assert_close(y[:1, :5], after(block, x[:1, :5]))


def test_resets_equal_separate_documents(block, generator):
    x = torch.randn(1, 9, 4, generator=generator, dtype=torch.float64)
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, [0, 3, 7]] = True
    parts = [after(block, x[:, a:b]) for a, b in ((0, 3), (3, 7), (7, 9))]
    assert_close(after(block, x, reset=reset), torch.cat(parts, 1))


def test_resets_and_padding_go_together(block, generator):
    x = torch.randn(1, 9, 4, generator=generator, dtype=torch.float64)
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, [0, 3]] = True
    mask = torch.arange(9)[None] < 6
    parts = [after(block, x[:, a:b]) for a, b in ((0, 3), (3, 6))]
    assert_close(after(block, x, mask=mask, reset=reset)[:, :6], torch.cat(parts, 1))


def test_a_bidirectional_block_sees_the_end_from_the_start(generator):
    x = torch.randn(1, 9, 4, generator=generator)
    for bidirectional in (False, True):
        block = Block(4, mixer=Mamba, bidirectional=bidirectional, generator=generator)
        changed = x.clone()
        changed[:, -1] += 1
        moved = not torch.equal(after(block, changed)[:, 0], after(block, x)[:, 0])
        assert moved is bidirectional


def test_reordered_positions_have_the_gradients_of_a_gather(generator):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]) > 0
    index = reversal(5, mask, batch=3)
    x = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    plain = x.gather(1, index[:, :, None].expand_as(x))
    assert torch.equal(_take(x, index), plain)
    weight = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(
        *(torch.autograd.grad((y * weight).sum(), x)[0] for y in (_take(x, index), plain))
    )
    assert torch.autograd.gradcheck(lambda x: _take(x, index).sin(), x)
    assert torch.autograd.gradgradcheck(lambda x: _take(x, index).sin(), x)
    assert _take(x[:0], index[:0]).shape == (0, 5, 2)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(_take(strided, index), plain)


def test_the_reversal_is_its_own_inverse():
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    index = reversal(5, mask, batch=3)
    assert index.tolist() == [[4, 3, 2, 1, 0], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert torch.equal(index.gather(1, index), torch.arange(5).expand(3, 5))


def test_read_backwards_a_document_starts_at_its_end():
    reset = torch.tensor([[True, False, True, False, False]])
    assert reversed_resets(reset, reversal(5, None, batch=1)).tolist() == [
        [False, False, False, True, False]
    ]
