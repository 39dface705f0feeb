"""A packed batch is worth what its documents are worth alone."""

import functools
import time

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from spherescan.data import NO_TARGET, PackedDocuments, TokenData, Windows
from spherescan.nn import Mamba, PrototypeHead, SequenceModel

pytestmark = pytest.mark.unwatched

LENGTHS = [5, 1, 3, 17, 2, 2, 9, 1, 6]
N_CLASSES = 11


def text(lengths=LENGTHS) -> TokenData:
    tokens = np.random.default_rng(0).integers(0, N_CLASSES, sum(lengths)).astype(np.uint16)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.uint64)
    shards = tuple(np.split(tokens, [7, 8, 30]))
    return TokenData(shards, starts, N_CLASSES, "text", "")


def model() -> SequenceModel:
    generator = torch.Generator().manual_seed(0)
    return SequenceModel(
        head=PrototypeHead(N_CLASSES, 8, generator=generator, init="random", learnable=True),
        vocab_size=N_CLASSES, d_model=8, n_layers=2, mixer=functools.partial(Mamba, d_state=3),
        pooling=(), generator=generator,
    ).double()  # fmt: skip


def loss_and_gradients(loss) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    net = model()
    value = loss(net)
    value.backward()
    return value.detach(), {name: p.grad for name, p in net.named_parameters()}


def packed_loss(batch):
    def loss(net):
        logits = 5 * net(batch.inputs, mask=batch.mask, reset=batch.reset)
        return cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NO_TARGET, reduction="sum"
        )

    return loss


def apart_loss(documents):
    def loss(net):
        total = torch.zeros((), dtype=torch.float64)
        for tokens in documents:
            logits = 5 * net(tokens[None, :-1])
            total = total + cross_entropy(logits[0], tokens[1:], reduction="sum")
        return total

    return loss


@pytest.mark.parametrize("kind", ["documents", "stream"])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_documents_alone(kind):
    data = text()
    # No document is cut: the longest fits into a row, and all of the text into one window.
    rows = (
        PackedDocuments(data, seq_len=16)
        if kind == "documents"
        else Windows(data, seq_len=data.n_tokens - 1)
    )
    batch = rows.batch(np.arange(len(rows)))
    documents = [
        torch.from_numpy(data.read(start, stop)) for start, stop in data.spans() if stop - start > 1
    ]
    together, gradients = loss_and_gradients(packed_loss(batch))
    apart, expected = loss_and_gradients(apart_loss(documents))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_document_longer_than_a_row_is_cut_into_pieces_of_their_own():
    data = text([20, 3])
    rows = PackedDocuments(data, seq_len=8)
    batch = rows.batch(np.arange(len(rows)))
    tokens = data.read(0, 23).tolist()
    assert batch.inputs.tolist() == [
        tokens[0:8], tokens[8:16], [*tokens[16:19], *tokens[20:22], 0, 0, 0],
    ]  # fmt: skip
    assert batch.targets[2].tolist() == [*tokens[17:20], *tokens[21:23], -1, -1, -1]
    assert batch.reset.int().argmax(1).tolist() == [0, 0, 0]
    assert batch.reset.sum(1).tolist() == [1, 1, 2]
    pieces = [torch.tensor(tokens[a:b]) for a, b in ((0, 9), (8, 17), (16, 20), (20, 23))]
    together, gradients = loss_and_gradients(packed_loss(batch))
    apart, expected = loss_and_gradients(apart_loss(pieces))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_what_an_epoch_leaves_out_is_counted():
    data = text()
    everything = {"tokens": 46, "documents": 9, "boundaries": 8, "one_token_documents": 2}
    packed = PackedDocuments(data, seq_len=4).counts()
    assert packed == everything | {"transitions": 37, "dropped_transitions": 0}
    assert Windows(data, seq_len=4).counts() == packed
    dropped = Windows(data, seq_len=4, tail="drop").counts()
    assert dropped == everything | {"transitions": 36, "dropped_transitions": 1}


def test_two_million_documents_are_planned_in_less_than_two_seconds():
    lengths = np.random.default_rng(0).integers(1, 60, 2_000_000)
    starts = (np.cumsum(lengths) - lengths).astype(np.uint64)
    tokens = np.broadcast_to(np.uint16(0), int(lengths.sum()))
    data = TokenData((tokens,), starts, 2, "text", "")
    start = time.process_time()
    rows = PackedDocuments(data, seq_len=1024)
    assert time.process_time() - start < 2
    assert (lengths - 1).sum() > 0.95 * len(rows) * 1024
