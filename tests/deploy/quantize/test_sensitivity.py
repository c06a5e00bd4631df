"""Each conv is quantized alone: by hand, and on networks with one bad layer."""

import copy

import pytest
import torch
from torch import nn

from mmseg_repvgg.deploy.quantize.sensitivity import (
    Scheme,
    rank_layers,
    round_maps,
    round_weights,
    simulate,
    table,
)
from mmseg_repvgg.reparam.equalize import equalize


def test_weights_by_hand():
    weight = torch.tensor([[1.27, -0.604], [0.1, 0.127]])
    # steps of 0.01 and 0.001
    expected = torch.tensor([[1.27, -0.60], [0.1, 0.127]])
    assert torch.allclose(round_weights(weight, Scheme()), expected, atol=1e-7)
    expected = torch.tensor([[1.27, -0.60], [0.1, 0.13]])  # steps of 0.01 for all
    assert torch.allclose(round_weights(weight, Scheme(per_tensor=True)), expected, atol=1e-7)
    weight = torch.tensor([[0.64, 0.014]])  # 64 steps of 0.01
    expected = torch.tensor([[0.64, 0.01]])
    assert torch.allclose(round_weights(weight, Scheme(weight_bits=7)), expected, atol=1e-7)


def test_maps_by_hand():
    x = torch.tensor([0.0, 0.4, 1.6, 255.0, 300.0, -5.0])
    low, high = torch.tensor(0.0), torch.tensor(255.0)
    assert round_maps(x, low, high, False).tolist() == [0, 0, 2, 255, 255, 0]
    low, high = torch.tensor(-127.0), torch.tensor(100.0)
    assert round_maps(x, low, high, True).tolist() == [0, 0, 2, 128, 128, -5]


class Network(nn.Module):
    """Three convs; ``encode_decode`` as a segmentor's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        return self.encode_decode(images, None)

    def encode_decode(self, images, metas):
        return self.c(self.b(self.a(images).relu()).relu())


def images():
    return [torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]


@torch.no_grad()
def test_a_channel_of_another_size_costs_those_that_compute_and_read_it():
    model, scheme = Network().eval(), Scheme(per_tensor=True)
    before = {layer.name: layer.error for layer in rank_layers(model, images(), scheme)}
    assert set(before) == {'a', 'b', 'c'}
    model.a.weight[0] *= 256  # the same function
    model.a.bias[0] *= 256
    model.b.weight[:, 0] /= 256
    layers = rank_layers(model, images(), scheme)
    after = {layer.name: layer.error for layer in layers}
    assert all(0 <= layer.flips < 1 for layer in layers)
    assert after['a'] > 5 * before['a'] and after['b'] > 5 * before['b']
    assert after['c'] == pytest.approx(before['c'], rel=1e-3)
    assert layers[-1].name == 'c'


@torch.no_grad()
def test_the_error_is_that_of_the_logits():
    model = Network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scheme = Scheme(weight_bits=7)
    found = {layer.name: layer for layer in rank_layers(model, images()[:1], scheme, ['a.weight'])}
    assert set(found) == {'b', 'c'}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    # the last conv by hand: its input and weights rounded
    x = images()[0]
    features = model.b(model.a(x).relu()).relu()
    expected = model.c(features)
    model.c.weight.data = round_weights(model.c.weight.data, scheme)
    rounded = round_maps(features, torch.tensor(0.0), features.max(), False)
    error = (model.c(rounded) - expected).norm() / expected.norm()
    assert found['c'].error == pytest.approx(error.item(), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('scheme', [Scheme(), Scheme(per_tensor=True), Scheme(symmetric=True)])
def test_the_collapse_and_its_cure(scheme):
    """Channels scaled at random by 2^-5 to 2^5: the same function, but not in int8."""
    model, x = Network().eval(), images()
    expected, before = model(x[0]), simulate(model, x, scheme)
    scales = 2.0 ** torch.randint(-5, 6, (8,), generator=torch.Generator().manual_seed(1))
    model.a.weight *= scales.view(-1, 1, 1, 1)
    model.a.bias *= scales
    model.b.weight /= scales.view(1, -1, 1, 1)
    assert torch.equal(model(x[0]), expected)
    assert simulate(model, x, scheme) > 4 * before
    for ranges in (None, x):
        cured = copy.deepcopy(model)
        assert equalize(cured, ranges) > 3
        assert torch.equal(cured(x[0]), expected)
        assert simulate(cured, x, scheme) < 2 * before


def test_the_table():
    layers = rank_layers(Network().eval(), images(), Scheme())
    lines = table(layers, 2).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(layers[0].name) and '% of the logits' in lines[0]
