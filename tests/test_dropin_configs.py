"""The curated configs: what they say, that the tool writes them, and that they train and fuse."""

import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.benchmark.dropin import CURATED, OURS
from mmseg_repvgg.checkpoint.mmengine_loader import PUBLISHED
from mmseg_repvgg.models.arch import get_arch
from mmseg_repvgg.swap_backbone import swap_backbone
from mmseg_repvgg.swap_backbone.bases import find_config
from tests.swap_backbone.families import SIZE, check_fusing, train_one_step

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted((CONFIGS / 'dropin').glob('*.py'))
CHILDREN = {Path(row.config).stem: row.theirs for row in CURATED.values()}
QUICK = ('realtime_repvgg_a0',)


def docstring(path):
    return path.read_text().split('"""')[1].replace('\\\n', ' ')


def test_the_benchmark_measures_all_of_them():
    measured = [row.config for row in CURATED.values()] + list(OURS.values())
    assert sorted(CONFIGS / name for name in measured) == LEAVES


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_command_hook_warm_up_and_weights(path):
    text, cfg = docstring(path), Config.fromfile(path)
    assert f'tools/train.py configs/dropin/{path.name}' in text
    assert 'not trained here' in text or 'realtime_repvgg_a0.py' in text
    assert [hook.type for hook in cfg.custom_hooks] == ['RepVGGDeployHook']
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end) == ('LinearLR', 0, 1000)
    assert (poly.type, poly.begin, poly.end) == ('PolyLR', 1000, cfg.train_cfg.max_iters)
    assert cfg.tta_model.type == 'SegTTAModel' and cfg.tta_pipeline
    assert 'mmseg_repvgg' in cfg.custom_imports.imports
    assert cfg.model.pretrained == PUBLISHED.get(cfg.model.backbone.arch)
    init_default_scope(cfg.default_scope)
    init_cfg = MODELS.build(cfg.model).backbone.init_cfg
    if cfg.model.pretrained is None:  # L2pse
        assert 'Pretrained' not in str(init_cfg) and 'random weights' in text
    else:
        weights = dict(type='Pretrained', checkpoint=cfg.model.pretrained, prefix='backbone.')
        assert init_cfg == weights


@pytest.mark.parametrize('name', CHILDREN)
def test_the_tool_writes_them(name, tmp_path):
    """The command of the docstring gives the same settings."""
    path = CONFIGS / 'dropin' / f'{name}.py'
    (line,) = [s for s in docstring(path).splitlines() if 'tools/swap_backbone.py' in s]
    words = shlex.split(line)
    base, options = words[2], dict(zip(words[3:-1:2], words[4:-1:2], strict=True))
    assert find_config(base) == find_config(CHILDREN[name])
    out = tmp_path / f'{name}.py'
    swap_backbone(base, out, options['--arch'], options.get('--variant'))
    assert Config.fromfile(out).to_dict() == Config.fromfile(path).to_dict()


@pytest.mark.parametrize('name', CHILDREN)
def test_quoted_results_are_those_of_mmsegs_model_zoo(name):
    base = find_config(CHILDREN[name])
    models = yaml.safe_load((base.parent / 'metafile.yaml').read_text())['Models']
    (model,) = [m for m in models if m['Name'] == base.stem]
    text = docstring(CONFIGS / 'dropin' / f'{name}.py')
    assert f' {model["Results"]["Metrics"]["mIoU"]:.2f}\nmIoU on Cityscapes val, quoted' in text


@pytest.mark.parametrize(
    'path',
    [p if p.stem in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in LEAVES],
    ids=lambda p: p.stem,
)
def test_they_train_and_fuse(path):
    """A step of the config's optimizer on tiny crops; fused, all heads give equal logits."""
    cfg = Config.fromfile(path)
    cfg.model.data_preprocessor.size = SIZE
    cfg.model.pretrained = None
    arch = get_arch(cfg.model.backbone.arch)
    if arch.se_cfg:
        # 24 layers with gates are chaotic with random statistics: in float64 the maps of stage 3
        # move as far by 1e-14 added to the image as by fusing
        cfg.model.backbone.arch = dict(asdict(arch), num_blocks=(2, 2, 2, 1))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    train_one_step(model, cfg)
    check_fusing(model)
