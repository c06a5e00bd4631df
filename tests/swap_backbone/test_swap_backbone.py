"""Child configs with RepVGG for backbone: what they say, and that what they say runs."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmseg_repvgg.checkpoint.mmengine_loader import PUBLISHED
from mmseg_repvgg.reparam import compare
from mmseg_repvgg.swap_backbone import CannotSwapError, swap_backbone
from mmseg_repvgg.swap_backbone.bases import find_config, shipped_configs
from mmseg_repvgg.swap_backbone.config_text import written
from tests.common import TINY, randomise_batchnorms, runner_cfg
from tests.swap_backbone.families import PASSED, outcome, swapped, sweep, table

PROJECT = Path(__file__).parents[2]
FCN = 'fcn_r50-d8_4xb2-40k_cityscapes-512x1024'
FPN = 'fpn_r50_4xb2-80k_cityscapes-512x1024'
UPERNET = 'upernet_r50_4xb2-40k_cityscapes-512x1024'
POINTREND = 'pointrend_r50_4xb2-80k_cityscapes-512x1024'
SWIN = 'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512'


def child(config, folder, **options):
    out = folder / 'child.py'
    report = swap_backbone(config, out, **dict(dict(arch='B1g2'), **options))
    return Config.fromfile(str(out)), report


def run_tool(monkeypatch, *words):
    tool = PROJECT / 'tools' / 'swap_backbone.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), *words])
    runpy.run_path(str(tool), run_name='__main__')


@pytest.mark.slow
def test_the_tool_writes_a_config_that_needs_nothing_but_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_tool(monkeypatch, f'mmseg::fcn/{FCN}.py', '--arch', 'A0', 'new/child.py')
    assert '2048 channels, stride 8 -> 1280, stride 8' in capsys.readouterr().out
    text = (tmp_path / 'new' / 'child.py').read_text()
    assert f'Command: mmseg-repvgg swap-backbone mmseg::fcn/{FCN}.py new/child.py' in text
    assert 'site-packages' not in text  # valid on other machines, too

    (tmp_path / 'foreign').mkdir()
    code = (
        'from mmengine.config import Config\n'
        'from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope\n'
        "cfg = Config.fromfile('../new/child.py')\n"
        'init_default_scope(cfg.default_scope)\n'
        'print(type(MODELS.build(cfg.model).backbone).__name__)\n'
    )
    words = [sys.executable, '-c', code]
    done = subprocess.run(
        words, cwd=tmp_path / 'foreign', capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ['DilatedRepVGG'], done.stderr


def test_the_tool_refuses_in_one_line_and_writes_nothing(tmp_path, monkeypatch):
    out = tmp_path / 'child.py'
    config = 'bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024'
    text = r'^swap_backbone: error: the maps of BiSeNetV2 have strides \[8, 4, 8, 16, 32\]; .*'
    with pytest.raises(SystemExit, match=text):
        run_tool(monkeypatch, config, str(out), '--arch', 'A0')
    assert not out.exists()


def test_configs_are_found_by_name_and_path(tmp_path):
    path = find_config(FCN)
    names = [f'fcn/{FCN}.py', f'fcn/{FCN}', f'{FCN}.py', f'mmseg::fcn/{FCN}.py', path, str(path)]
    assert {find_config(name) for name in names} == {path}
    assert path in shipped_configs()
    with pytest.raises(FileNotFoundError, match=f'neither a file nor.*near: .*{FCN}'):
        find_config(FCN.replace('40k', '41k'))


def test_the_child_changes_backbone_heads_schedule_and_hook_only(tmp_path):
    """Channels of B1g2 from the paper's Table 3; the rest is that of mmseg's config."""
    cfg, report = child(FCN, tmp_path)
    base = Config.fromfile(str(find_config(FCN)))
    assert report.notes == ('warm-up over 1000 iterations',)
    assert cfg.model.backbone == dict(
        type='DilatedRepVGG',
        arch='B1g2',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    )
    assert cfg.model.pretrained == PUBLISHED['B1g2']
    assert (cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels) == (2048, 512)
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end) == ('LinearLR', 0, 1000)
    assert poly == dict(base.param_scheduler[0], begin=1000)
    assert cfg.custom_hooks == [dict(type='RepVGGDeployHook')]
    assert cfg.custom_imports.imports == ['mmseg_repvgg']
    base.model.auxiliary_head.in_channels = 512
    for key in ('backbone', 'pretrained'):
        cfg.model.pop(key)
        base.model.pop(key)
    for key in ('param_scheduler', 'custom_hooks', 'custom_imports'):
        cfg.pop(key)
        base.pop(key, None)
    assert cfg.to_dict() == base.to_dict()


FAST = (1, 1, (1,) * 12 + (2,) * 4, 4)


@pytest.mark.parametrize(
    ('config', 'variant', 'strides', 'dilations'),
    [
        (FCN, 'full', (2, 2, 1, 1), (1, 1, 2, 4)),
        (FCN, 'fast', (2, 2, 1, 1), FAST),
        (FCN, 'none', (2, 2, 2, 2), (1, 1, 1, 1)),
        (UPERNET, None, (2, 2, 2, 2), (1, 1, 1, 1)),
        (UPERNET, 'fast', (2, 2, 1, 1), FAST),
        ('fcn-d6_r50-d16_4xb2-40k_cityscapes-512x1024', None, (2, 2, 2, 1), (1, 1, 1, 2)),
        # seven stages of its own: the dilations make up for the strides left out
        ('mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024', None, (2, 2, 1, 1), (1, 1, 2, 4)),
        # mmseg's own model dilates although its strides are left in
        ('pspnet_r50-d32_4xb2-80k_cityscapes-512x1024', None, (2, 2, 2, 2), (1, 1, 2, 4)),
    ],
)
def test_variants(config, variant, strides, dilations, tmp_path):
    cfg, _ = child(config, tmp_path, variant=variant)
    assert cfg.model.backbone.strides == strides
    assert cfg.model.backbone.dilations == dilations


def test_settings_of_strides_follow_the_variant(tmp_path):
    cfg, _ = child(FPN, tmp_path)
    assert cfg.model.neck.in_channels == [128, 256, 512, 2048]
    assert cfg.model.decode_head.feature_strides == [4, 8, 16, 32]
    cfg, _ = child(FPN, tmp_path, variant='full')
    assert cfg.model.decode_head.feature_strides == [4, 8, 8, 8]
    assert cfg.model.decode_head.in_channels == [256, 256, 256, 256]  # of the neck


def test_channels_that_are_not_called_in_channels(tmp_path):
    cfg, _ = child('deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024', tmp_path)
    assert (cfg.model.decode_head.c1_in_channels, cfg.model.decode_head.c1_channels) == (128, 48)
    cfg, _ = child('knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512', tmp_path, arch='A0')
    assert cfg.model.decode_head.kernel_generate_head.in_channels == 1280
    assert cfg.model.decode_head.kernel_update_head[0].in_channels == 512  # of the head itself
    cfg, _ = child('fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024', tmp_path, arch='A0')
    assert cfg.model.neck.in_channels == (96, 192, 1280)
    assert cfg.model.backbone.out_indices == (1, 2, 3)
    assert cfg.model.decode_head.in_channels == 2048  # of the neck, from four times 512
    assert cfg.model.auxiliary_head.in_channels == 192  # through the neck, as it came
    cfg, _ = child('mask2former_r50_8xb2-90k_cityscapes-512x1024', tmp_path, variant='full')
    assert cfg.model.decode_head.in_channels == [128, 256, 512, 2048]
    assert cfg.model.decode_head.strides == [4, 8, 8, 8]


def test_optimizer_settings_of_other_backbones_are_left_out(tmp_path):
    cfg, report = child(SWIN, tmp_path)
    base = Config.fromfile(str(find_config(SWIN)))
    assert "left out of the base's optim_wrapper: relative_position_bias_table" in report.notes
    # absolute_pos_embed names nothing in this Swin either; norm names RepVGG's, too
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys == dict(absolute_pos_embed=dict(decay_mult=0.0), norm=dict(decay_mult=0.0))
    assert cfg.optim_wrapper.optimizer == base.optim_wrapper.optimizer
    assert cfg.param_scheduler == base.param_scheduler  # it has a warm-up
    cfg, report = child('convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512', tmp_path)
    assert set(cfg.optim_wrapper) == {'type', 'optimizer', 'loss_scale'}
    assert cfg.custom_imports.imports == ['mmpretrain.models', 'mmseg_repvgg']
    assert 'LearningRateDecayOptimizerConstructor and its paramwise_cfg' in report.notes[0]


def test_a_config_of_the_users_own(tmp_path):
    """Named relative to the child, so that both can move; shared settings are carried over."""
    (tmp_path / 'old' / 'configs').mkdir(parents=True)
    base = f"""
_base_ = [{str(find_config(FCN))!r}]
model = dict(backbone=dict(frozen_stages=1, norm_eval=True, in_channels=4))
custom_hooks = [dict(type='EMAHook')]
load_from = 'resnet_fcn.pth'
"""
    (tmp_path / 'old' / 'configs' / 'base.py').write_text(base)
    out = tmp_path / 'old' / 'swapped' / 'child.py'
    swap_backbone(tmp_path / 'old' / 'configs' / 'base.py', out, TINY, weights='none')
    assert "'../configs/base.py'" in out.read_text()
    (tmp_path / 'old').rename(tmp_path / 'new')
    cfg = Config.fromfile(str(tmp_path / 'new' / 'swapped' / 'child.py'))
    backbone = cfg.model.backbone
    assert (backbone.frozen_stages, backbone.norm_eval, backbone.in_channels) == (1, True, 4)
    assert cfg.model.pretrained is None  # instead of the weights of the ResNet
    assert [h.type for h in cfg.custom_hooks] == ['EMAHook', 'RepVGGDeployHook']
    assert cfg.load_from is None
    init_default_scope('mmseg')
    assert MODELS.build(cfg.model).backbone.arch.num_blocks == TINY['num_blocks']


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param('model = dict(decode_head=dict(in_channels=2000))', id='channels'),
        pytest.param('model = dict(auxiliary_head=dict(in_index=7))', id='index'),
        pytest.param('model = dict(decode_head=dict(strides=[7]))', id='strides'),
    ],
)
def test_a_config_that_contradicts_its_own_backbone_is_refused(changes, tmp_path):
    (tmp_path / 'base.py').write_text(f'_base_ = [{str(find_config(FCN))!r}]\n{changes}\n')
    with pytest.raises(CannotSwapError, match='head.*(2000|7)'):
        swap_backbone(tmp_path / 'base.py', tmp_path / 'child.py', 'A0')
    assert not (tmp_path / 'child.py').exists()


@pytest.mark.parametrize(
    ('config', 'reason'),
    [
        ('bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024', 'no decode head reads the last'),
        ('icnet_r18-d8_4xb2-80k_cityscapes-832x832', 'several scaled images'),
        ('ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024', 'one map, not a list'),
        ('dpt_vit-b16_8xb2-160k_ade20k-512x512', r"no feature maps \(N, C, H, W\) but \['list'"),
        ('vit_deit-s16_upernet_8xb2-80k_ade20k-512x512', r'strides \[16, 16, 16, 16\]'),
        ('segmenter_vit-t_mask_8xb1-160k_ade20k-512x512', r'strides \[16\]'),
        ('san-vit-b16_voc12aug-640x640', 'no backbone and decode head'),
    ],
)
def test_networks_of_another_kind_are_refused(config, reason, tmp_path):
    with pytest.raises(CannotSwapError, match=reason):
        swap_backbone(config, tmp_path / 'child.py', 'A0')


def test_pure_python_configs_are_refused(tmp_path):
    (tmp_path / 'base.py').write_text(
        'from mmseg.models import EncoderDecoder, FCNHead, ResNet\n'
        'default_scope = None\n'
        'model = dict(type=EncoderDecoder, backbone=dict(type=ResNet), '
        'decode_head=dict(type=FCNHead))\n'
    )
    (tmp_path / 'leaf.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'
    )
    for name in ('base.py', 'leaf.py'):
        with pytest.raises(CannotSwapError, match=f'{name} is written in .* pure Python style'):
            swap_backbone(tmp_path / name, tmp_path / 'child.py', 'A0')


def test_the_mean_of_a_preprocessor_that_is_not_in_the_model_is_compared(tmp_path):
    preprocessor = "data_preprocessor = dict(type='SegDataPreProcessor', mean=[0.0] * 3)\n"
    base = f'_base_ = [{str(find_config(FCN))!r}]\nmodel = dict(data_preprocessor=None)\n'
    (tmp_path / 'base.py').write_text(base + preprocessor)
    report = swap_backbone(tmp_path / 'base.py', tmp_path / 'child.py', 'A0')
    assert any("the base's mean [0.0, 0.0, 0.0]" in note for note in report.notes)


def schedule_of(folder, schedulers, extra=''):
    """The child's schedulers as a runner builds them, and what is said of the warm-up."""
    base = f'_base_ = [{str(find_config(FCN))!r}]\nparam_scheduler = {schedulers!r}\n{extra}'
    (folder / 'base.py').write_text(base)
    report = swap_backbone(folder / 'base.py', folder / 'child.py', 'A0', weights='none')
    settings = Config.fromfile(str(folder / 'child.py')).param_scheduler
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    built = [
        PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer)) for s in settings
    ]
    (note,) = [note for note in report.notes if 'warm-up' in note]
    return settings, built, optimizer, note


def by_iterations(kind, **settings):
    return [dict(type=kind, by_epoch=False, begin=0, **settings)]


@pytest.mark.slow
def test_the_warm_up_fits_into_short_trainings(tmp_path):
    """A twentieth: 1000 of mmseg's shortest, 20 000."""
    for end, warm_up in ((20_000, 1000), (500, 25), (100, 5)):
        settings, *_, note = schedule_of(tmp_path, by_iterations('PolyLR', end=end))
        assert [(s['begin'], s['end']) for s in settings] == [(0, warm_up), (warm_up, end)]
        assert note == f'warm-up over {warm_up} iterations'
    limit = 'train_cfg = dict(max_iters=60)\n'
    settings, *_ = schedule_of(tmp_path, by_iterations('PolyLR', end=100), limit)
    assert settings[0]['end'] == 3
    settings, *_, note = schedule_of(tmp_path, by_iterations('PolyLR', end=10))
    assert [s['type'] for s in settings] == ['PolyLR']
    assert note == 'no warm-up: the training has 10 iterations'
    epochs = [dict(type='PolyLR', by_epoch=True, begin=0, end=2)]
    settings, *_, note = schedule_of(tmp_path, epochs, 'train_cfg = dict(max_iters=None)\n')
    assert settings[1] == epochs[0]
    assert 'use a shorter one for a short training' in note


def test_steps_of_the_rate_stay_where_they_are(tmp_path):
    """By hand: a tenth at iteration 70; a cosine is at its end at iteration 100."""
    steps = by_iterations('MultiStepLR', milestones=[70], end=100)
    _, built, optimizer, _ = schedule_of(tmp_path, steps)
    rates = []
    for _ in range(99):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in built:
            scheduler.step()
    assert rates[0] == pytest.approx(0.001)
    assert rates[10:70] == pytest.approx([1.0] * 60) and rates[70:] == pytest.approx([0.1] * 29)
    settings, *_ = schedule_of(tmp_path, by_iterations('CosineAnnealingLR', T_max=100, end=100))
    assert (settings[1]['begin'], settings[1]['T_max'], settings[1]['end']) == (5, 95, 100)


def test_values_and_names_that_python_must_read_again(tmp_path):
    """Infinity, and a folder as Windows writes it."""
    extra = "custom_hooks = [dict(type='EMAHook', momentum=float('inf'))]\n"
    (tmp_path / 'base.py').write_text(f'_base_ = [{str(find_config(FCN))!r}]\n{extra}')
    out = tmp_path / 'C:\\Users\\new' / 'child.py'
    swap_backbone(tmp_path / 'base.py', out, 'A0')
    assert Config.fromfile(str(out)).custom_hooks[0].momentum == float('inf')
    assert 'C:\\Users\\new/child.py' in ast.get_docstring(ast.parse(out.read_text()))
    assert written([float('-inf'), 1.5, float('nan')]) == "[float('-inf'), 1.5, float('nan')]"


def test_a_base_that_mmengine_takes_for_the_other_style_is_refused(tmp_path):
    """It names its types, but imports a module."""
    cfg = runner_cfg('data', 'work')
    model = dict(cfg.model, backbone=dict(type='ResNetV1c', depth=18))
    model['decode_head'].update(in_channels=512)
    model['auxiliary_head'].update(in_channels=256)
    text = Config(dict(model=model)).pretty_text
    (tmp_path / 'base.py').write_text(f'import numpy\n{text}')
    with pytest.raises(CannotSwapError, match="no config can inherit from 'base.py': "):
        swap_backbone(tmp_path / 'base.py', tmp_path / 'child.py', 'A0')
    assert not (tmp_path / 'child.py').exists()


def test_wrong_arguments_are_named(tmp_path):
    for options, text in (
        (dict(arch='B9'), "unknown RepVGG arch 'B9'"),
        (dict(arch='A0', variant='slow'), "variant='slow' must be one of full, fast, none"),
        (dict(arch='A0', out=tmp_path / 'child'), 'must end in .py'),
        (dict(arch='A0', out=find_config(FCN)), 'is the config itself'),
    ):
        with pytest.raises(ValueError, match=text):
            swap_backbone(**dict(dict(config=FCN, out=tmp_path / 'child.py'), **options))
    assert not list(tmp_path.iterdir())


def test_published_weights_are_those_of_mmpretrains_model_zoo():
    import mmpretrain

    metafile = Path(mmpretrain.__path__[0], '.mim', 'configs', 'repvgg', 'metafile.yml')
    models = yaml.safe_load(metafile.read_text())['Models']
    # the maintained forks keep the same files on another host
    names = [
        sorted(url.partition('/mmclassification/')[2] for url in urls)
        for urls in (PUBLISHED.values(), [m['Weights'] for m in models])
    ]
    assert names[0] == names[1] and all(names[0])
    for arch, url in PUBLISHED.items():
        assert f'repvgg-{arch}_' in url


@pytest.mark.parametrize(
    ('config', 'variant'),
    [
        (FCN, 'fast'),
        ('deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024', None),
        ('ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024', 'full'),
        ('segformer_mit-b0_8xb1-160k_cityscapes-1024x1024', 'full'),
        (FPN, 'full'),
        (POINTREND, None),
    ],
)
def test_they_train_and_fuse(config, variant, tmp_path):
    assert outcome(config, tmp_path, variant=variant) == PASSED


@pytest.mark.parametrize(
    ('config', 'factor'), [(FCN, 0.001), pytest.param(POINTREND, 0.1, marks=pytest.mark.slow)]
)
def test_a_runner_trains_with_their_schedule_and_hook(config, factor, scenes, tmp_path):
    """The rate begins below the base's 0.01: by our warm-up, or its own. The fused form is used."""
    cfg = swapped(config, tmp_path)
    cfg.model.data_preprocessor.size = (64, 64)
    taken = ('model', 'optim_wrapper', 'param_scheduler', 'custom_hooks')
    work_dir = tmp_path / 'work'
    changes = {key: cfg[key] for key in taken}
    runner = Runner.from_cfg(runner_cfg(scenes, work_dir, log_level='INFO', **changes))
    runner.train()
    (log,) = work_dir.glob('*/*.log')
    blocks = 1 + sum(TINY['num_blocks'])
    assert f'Evaluating the deployed form: {blocks} blocks' in log.read_text()
    scalars = [json.loads(s) for s in next(work_dir.glob('*/vis_data/scalars.json')).open()]
    rates = [s['lr'] for s in scalars if 'lr' in s]
    assert rates[0] == pytest.approx(factor * 0.01)
    assert rates == sorted(rates) and rates[0] < rates[-1]


def test_all_heads_of_a_cascade_are_compared(tmp_path):
    """PointRend's head cannot run in mmseg's tensor mode; a change in it must be seen, too."""
    cfg = swapped(POINTREND, tmp_path)
    init_default_scope('mmseg')
    models = [randomise_batchnorms(MODELS.build(cfg.model)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert compare(*models, images).max_abs == 0
    for head in models[1].decode_head:
        seg = head.fc_seg if hasattr(head, 'fc_seg') and head.fc_seg is not None else head.conv_seg
        before = seg.bias.detach().clone()
        nn.init.constant_(seg.bias, 1.0)
        assert compare(*models, images).max_abs > 0.5
        seg.bias.data.copy_(before)
    assert compare(*models, images).max_abs == 0


@pytest.mark.slow
def test_every_config_that_mmseg_ships(tmp_path, family):
    """The table of docs/dropin.md, made anew."""
    rows = sweep(tmp_path)
    for row in rows:
        assert row.result.split(':')[0] in (PASSED, 'refused', 'not run'), row
    assert sum(row.taken for row in rows) > sum(row.configs for row in rows) / 2
    if family == 'openmmlab':  # the maintained forks ship other configs
        written = (PROJECT / 'docs' / 'dropin.md').read_text()
        assert '\n'.join(table(rows)) in written
