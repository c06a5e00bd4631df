"""Norms of branches, by hand, and what fusing changes layer by layer."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg import cli
from mmseg_repvgg.engine import launch
from mmseg_repvgg.models.block import RepVGGBlock
from mmseg_repvgg.plots import layers
from mmseg_repvgg.reparam.equivalence import random_images
from mmseg_repvgg.reparam.rewrites import deployed_copy
from tests.common import TINY, randomise_batchnorms, runner_cfg, segmentor_cfg
from tests.plots.labels import overlapping

LAYERS = ['stem', '1.0', '1.1', '2.0', '2.1', '2.2', '3.0', '3.1', '3.2', '4.0']


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    init_default_scope('mmseg')
    return randomise_batchnorms(MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64))))


def test_norms_of_a_block_by_hand():
    block = RepVGGBlock(2, 2).eval()
    with torch.no_grad():
        for norm, scales in (
            (block.branch_3x3.norm, (0.5, 1.0)),
            (block.branch_1x1.norm, (-3.0, 1.0)),
            (block.branch_norm, (3.0, 4.0)),
        ):
            norm.weight.copy_(torch.tensor(scales))
            norm.running_var.fill_(4 - norm.eps)  # halves the scales
        block.branch_3x3.conv.weight.fill_(2.0)  # 18 taps: L2 norm sqrt(72) per channel
        block.branch_1x1.conv.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]])[..., None, None])
    (norms,) = layers.branch_norms(block).values()
    assert norms == pytest.approx(
        {
            '3x3': np.sqrt(72 * (0.25**2 + 0.5**2) / 2),
            '1x1': np.sqrt(((1.5 * 5) ** 2 + 0.5**2) / 2),
            'identity': np.sqrt((1.5**2 + 2**2) / 2),
        }
    )


def test_ranges_of_a_block_by_hand():
    """An identity of 3 in a kernel of -1 and 1: (1 + 3) / its standard deviation."""
    block = RepVGGBlock(1, 1).eval()
    signs = torch.tensor([[-1.0, 1, -1], [1, 1, -1], [1, -1, 1]])
    with torch.no_grad():
        for norm in (block.branch_3x3.norm, block.branch_1x1.norm, block.branch_norm):
            norm.running_var.fill_(1 - norm.eps)
        block.branch_3x3.conv.weight.copy_(signs[None, None])
        block.branch_1x1.conv.weight.zero_()
        block.branch_norm.weight.fill_(3.0)
    found = layers.KernelRanges.of(block)
    merged = signs.clone()
    merged[1, 1] += 3
    assert found.alone == pytest.approx({'': 1 / np.std(signs.numpy(), ddof=1)})
    assert found.fused == pytest.approx({'': 4 / np.std(merged.numpy(), ddof=1)})
    block.switch_to_deploy()
    again = layers.KernelRanges.of(block)
    assert again.fused == pytest.approx(found.fused) and again.alone == {}
    with pytest.raises(ValueError, match='Conv2d has no RepVGG block: give a model on'):
        layers.KernelRanges.of(torch.nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize(
    ('kind', 'branches'),
    [
        ('repvgg', ['3x3', '1x1', 'identity']),
        ('identity_without_bn', ['3x3', '1x1', 'identity']),
        ('acb', ['3x3', '1x3', '3x1']),
        ('diracnet', ['3x3']),
    ],
)
def test_branches_of_other_blocks(kind, branches):
    backbone = MODELS.build(dict(type='DilatedRepVGG', arch=TINY, block=kind))
    norms = layers.branch_norms(backbone)
    assert list(norms['stage_1.1']) == branches
    if kind == 'identity_without_bn':
        assert norms['stage_1.1']['identity'] == 1
        assert 'identity' not in norms['stem']


def test_branches_are_drawn(model):
    norms = layers.branch_norms(model)
    figure = layers.draw_branches(norms)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == LAYERS
    expected = [norms[name].get('identity', np.nan) for name in norms]
    assert np.array_equal(axes.lines[2].get_ydata(), expected, equal_nan=True)
    assert np.isnan(expected).tolist() == [
        n in ('stem', '1.0', '2.0', '3.0', '4.0') for n in LAYERS
    ]
    assert overlapping(figure) == []


def test_b2_has_room_for_all_of_its_layers():
    depths = (4, 6, 16, 1)
    names = ['backbone.stem'] + [
        f'backbone.stage_{s + 1}.{i}' for s in range(4) for i in range(depths[s])
    ]
    draw = np.random.default_rng(0)
    norms = {name: {b: draw.uniform(0.1, 9) for b in ('3x3', '1x1', 'identity')} for name in names}
    assert overlapping(layers.draw_branches(norms)) == []
    differences = dict.fromkeys([*names, 'output'], 1e-6)
    assert overlapping(layers.draw_differences(differences, 1e-4)) == []
    values = {name: draw.uniform(3, 60) for name in names}
    ranges = layers.KernelRanges(values, values)
    assert overlapping(layers.draw_ranges(dict(a_config=ranges, another_one=ranges))) == []


def test_differences_are_those_of_rounding(model):
    found = layers.fusing_differences(model, random_images(model, (65, 65)))
    assert [name.removeprefix('backbone.').replace('stage_', '') for name in found] == [
        *LAYERS, 'output'
    ]  # fmt: skip
    assert all(0 < value < 1e-5 for value in found.values())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_wrong_layer_is_seen_from_there_on(model, monkeypatch):
    def damaged_copy(model, names):
        fused, counts = deployed_copy(model, names)
        fused.backbone.stage_3[0].branch_reparam.bias.data += 1
        return fused, counts

    monkeypatch.setattr(layers, 'deployed_copy', damaged_copy)
    found = layers.fusing_differences(model, random_images(model, (65, 65)))
    names = list(found)
    first = names.index('backbone.stage_3.0')
    assert max(found[name] for name in names[:first]) < 1e-5
    assert min(found[name] for name in names[first:]) > 1e-3


def test_the_commands(scenes, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = runner_cfg(scenes, 'work')
    monkeypatch.setattr(launch, 'load_config', lambda *args: cfg)
    torch.save(model.state_dict(), 'a.pth')
    fused, _ = deployed_copy(model, ['branches'])
    torch.save(fused.state_dict(), 'fused.pth')
    for words in (['branches'], ['difference'], ['difference', '--random', '--out', 'random.svg']):
        cli.main(['plot', words[0], 'a.py', 'a.pth', *words[1:]])
    cli.main(['plot', 'ranges', 'a.py', 'a.pth', 'b.py', 'a.pth'])
    found = {path.name for path in tmp_path.iterdir()}
    pictures = {'branches.png', 'difference.png', 'random.svg', 'ranges.png'}
    assert found == {'a.pth', 'fused.pth', *pictures}
    with pytest.raises(SystemExit, match='error: give a checkpoint after each config'):
        cli.main(['plot', 'ranges', 'a.py'])
    for kind in ('branches', 'difference'):
        with pytest.raises(SystemExit, match=r'error: fused\.pth is fused already; give'):
            cli.main(['plot', kind, 'a.py', 'fused.pth'])
    cfg.test_dataloader.dataset.data_root = 'nowhere'
    with pytest.raises(SystemExit, match='the images of test_dataloader are not there; add --rand'):
        cli.main(['plot', 'difference', 'a.py', 'a.pth'])


def test_a_model_without_branches():
    with pytest.raises(ValueError, match='Conv2d has no RepVGG block with branches'):
        layers.branch_norms(torch.nn.Conv2d(1, 1, 1))
