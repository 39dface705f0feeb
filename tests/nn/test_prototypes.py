import pytest
import torch

from spherescan.losses import prototype_softmax_loss
from spherescan.nn import PrototypeHead
from tests.tolerances import assert_close


def test_the_output_is_the_cosine(generator):
    head = PrototypeHead(5, 3, init="random", generator=generator)
    z = torch.randn(4, 6, 3, generator=generator)
    cosines = head(z)
    assert cosines.shape == (4, 6, 5)
    expected = torch.nn.functional.cosine_similarity(z[:, :, None], head.prototypes, dim=-1)
    assert_close(cosines, expected)
    assert_close(head(17.0 * z), cosines)


def test_fixed_prototypes_have_no_parameter_and_are_saved():
    head = PrototypeHead(4, 3)
    assert list(head.parameters()) == []
    assert head.state_dict().keys() == {"weight"}


def test_learnable_rows_stay_on_the_sphere_whatever_the_update(generator):
    head = PrototypeHead(4, 3, learnable=True)
    optimizer = torch.optim.SGD(head.parameters(), lr=100.0)
    before = head.prototypes.detach().clone()
    for _ in range(5):
        z = torch.randn(8, 3, generator=generator)
        target = torch.randint(0, 4, (8,), generator=generator)
        optimizer.zero_grad()
        prototype_softmax_loss(z, head.prototypes, target, scale=10.0).sum().backward()
        optimizer.step()
    assert not torch.allclose(head.prototypes, before)
    assert_close(head.prototypes.norm(dim=1), torch.ones(4))


def test_separated_is_the_default(generator):
    cosines = PrototypeHead(4, 3, generator=generator).prototypes
    gram = cosines @ cosines.T
    assert_close(gram, torch.eye(4) * 4 / 3 - 1 / 3)


def test_an_unknown_placement_is_named():
    with pytest.raises(ValueError, match="unknown init 'far'; choose from separated, random"):
        PrototypeHead(3, 3, init="far")
    with pytest.raises(ValueError, match="both must be >= 1"):
        PrototypeHead(0, 3, init="random")
