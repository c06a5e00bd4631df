"""The configs of Tables 6 and 7: one a row, with its block, its figures and the simple recipe."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.models import VARIANTS
from mmseg_repvgg.reparam.rewrites import check_names

CONFIGS = Path(__file__).parents[1] / 'configs' / 'imagenet' / 'ablations'
BASE = CONFIGS.parent / 'repvgg_b0_120e.py'
LEAVES = sorted(CONFIGS.glob('*.py'))

# Table 6: branches of the block, top-1 accuracy, examples/s in training form
TABLE_6 = {
    '3x3': (('3x3',), '72.39', '1810 examples/s'),
    '3x3_identity': (('3x3', 'identity'), '74.79', '1569 examples/s'),
    '3x3_1x1': (('3x3', '1x1'), '73.15', '1230 examples/s'),
    '3x3_1x1_identity': (('3x3', '1x1', 'identity'), '75.14', '1061 examples/s'),
}
# Table 7 without the full block: name in the table and top-1 accuracy
TABLE_7 = {
    'identity_without_bn': ('Identity w/o BN', '74.18'),
    'post_addition_bn': ('Post-addition BN', '73.52'),
    'relu_in_branches': ('+ReLU in branch', '75.69'),
    'diracnet': ('DiracNet', '73.97'),
    'trivial_reparam': ('Trivial Re-param', '73.51'),
    'acb': ('ACB', '73.58'),
    'residual_reorg': ('Residual Reorg', '74.56'),
}


def row_of(path: Path) -> str:
    return path.stem.removeprefix('repvgg_b0_').removesuffix('_120e')


def test_every_row_has_its_config_and_quotes_it():
    assert {row_of(path) for path in LEAVES} == TABLE_6.keys() | TABLE_7.keys()
    for path in LEAVES:
        docstring = path.read_text().split('"""')[1]
        assert f'ablations/{path.name} ' in docstring
        assert 'quoted from the paper, not measured here' in docstring
        quoted = TABLE_6[row_of(path)][1:] if row_of(path) in TABLE_6 else TABLE_7[row_of(path)]
        assert all(text in docstring for text in quoted), path
    printed = {name: (v.row, f'{v.accuracy:.2f}') for name, v in VARIANTS.items() if v.accuracy}
    assert printed.pop('repvgg') == ('Full-featured reparam', '75.14')
    assert printed == TABLE_7


@pytest.mark.parametrize('path', LEAVES, ids=row_of)
def test_only_the_block_differs_from_the_recipe_of_b0(path):
    cfg, base = Config.fromfile(path).to_dict(), Config.fromfile(BASE).to_dict()
    row = row_of(path)
    backbone = cfg['model']['backbone']
    if row in TABLE_6:
        assert backbone.pop('branches') == TABLE_6[row][0]
    else:
        assert backbone.pop('block') == row
    (hook,), expected = cfg.pop('custom_hooks'), base.pop('custom_hooks')
    if row in ('relu_in_branches', 'residual_reorg'):  # no fused form
        assert hook == dict(type='RepVGGDeployHook', rewrites=('batchnorm',))
        check_names(hook['rewrites'])
    else:
        assert [hook] == expected
    if row == 'diracnet':
        cfg['optim_wrapper']['paramwise_cfg'].pop('custom_keys')
    assert cfg == base


@pytest.mark.parametrize('path', LEAVES, ids=row_of)
def test_weight_decay_acts_on_kernels_only(path):
    """Section 4.1: "weight decay of 1e-4 on the kernels of conv and fully-connected layers"."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.backbone(torch.zeros(1, 3, 64, 64, device='meta'))[-1].shape == (1, 1280, 2, 2)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (1e-4 if parameter.dim() > 1 else 0.0), name
