"""configs/camvid and configs/realtime: equal terms, and every network takes a step and fuses."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope

from mmseg_repvgg.checkpoint.mmengine_loader import PUBLISHED
from mmseg_repvgg.engine import launch
from mmseg_repvgg.models import ARCHS, DilatedRepVGG
from tests.datasets.test_camvid import draw
from tests.swap_backbone.families import SIZE, batch, check_fusing, train_one_step

CONFIGS = Path(__file__).parents[1] / 'configs'
CAMVID, REALTIME = sorted(CONFIGS.glob('camvid/*.py')), sorted(CONFIGS.glob('realtime/*.py'))
RECIPES = sorted(CONFIGS.glob('camvid/recipes/*.py'))
OTHERS = ('bisenetv2', 'ddrnet_23_slim', 'pidnet_s', 'pspnet_r18', 'stdc1')
QUICK = ('camvid/uafm_qarepvgg_a0', 'recipes/lovasz')


def name_of(path):
    return f'{path.parent.name}/{path.stem}'


def every(paths):
    values = [p if name_of(p) in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in paths]
    return pytest.mark.parametrize('path', values, ids=name_of)


def built(cfg):
    cfg.model.data_preprocessor.size = SIZE
    cfg.model.pretrained = None
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


@pytest.mark.parametrize('path', CAMVID, ids=name_of)
def test_every_network_has_the_same_data_schedule_and_crops(path):
    cfg, base = (Config.fromfile(p) for p in (path, CONFIGS / 'camvid/uafm_repvgg_a0.py'))
    text = path.read_text().split('"""')[1]
    assert f'mmseg-repvgg train configs/camvid/{path.name}' in text
    record = CONFIGS.parent / 'benchmarks/camvid' / f'{path.stem}_seed0.json'
    if record.is_file():
        assert f'mIoU {json.loads(record.read_text())["miou"]:.2f} %' in text
    else:
        assert 'not trained here' in text
    pipeline = [t for t in cfg.train_dataloader.dataset.pipeline if t.type != 'GenerateEdge']
    assert pipeline == base.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = pipeline
    for name in ('train_dataloader', 'val_dataloader', 'optim_wrapper', 'param_scheduler',
                 'train_cfg', 'default_hooks', 'val_evaluator', 'randomness'):  # fmt: skip
        assert cfg[name] == base[name], name
    assert cfg.model.get('pretrained') is None
    assert 'init_cfg' not in cfg.model.backbone or cfg.model.backbone.init_cfg is None
    assert cfg.model.data_preprocessor.size == (256, 320)
    assert cfg.model.test_cfg.mode == 'whole'
    heads = [cfg.model.decode_head, *np.atleast_1d(cfg.model.get('auxiliary_head') or [])]
    assert {h.num_classes for h in heads if h.type != 'STDCHead'} == {11}
    if path.stem.startswith('uafm'):  # they learn from the maps of strides 8 and 16 as well
        found = [(head.in_index, head.in_channels) for head in cfg.model.auxiliary_head]
        assert found == list(enumerate(cfg.model.decode_head.in_channels[:2]))
    torch.manual_seed(0)
    init_default_scope('mmseg')
    classifier = MODELS.build(cfg.model.decode_head)
    classifier.init_weights()
    assert 0.3 < classifier.conv_seg.weight.std() < 0.6  # of mmseg's other heads: 0.01
    for head in heads:  # each learns hard pixels; where the loss is one of OHEM, by itself
        if 'OhemCrossEntropy' not in str(head.loss_decode) and head.type != 'STDCHead':
            assert head.sampler.type == 'HardPixelSampler'
            assert (head.sampler.thresh, head.sampler.min_kept) == (0.7, 256 * 320 // 16)
    assert [hook.type for hook in cfg.custom_hooks] == ['RepVGGDeployHook']
    init_default_scope('mmseg')
    for transform in cfg.train_dataloader.dataset.pipeline:
        TRANSFORMS.build(transform)


@pytest.mark.parametrize('path', RECIPES, ids=name_of)
def test_a_recipe_changes_only_what_it_names(path):
    cfg, base = (Config.fromfile(p) for p in (path, CONFIGS / 'camvid/uafm_repvgg_a0.py'))
    assert f'mmseg-repvgg train configs/camvid/recipes/{path.name}' in path.read_text()
    differing = {key for key in base if cfg[key] != base[key]}
    changed = {
        'every_pixel': {'model'}, 'lovasz': {'model'}, 'class_weights': {'model'},
        'ema': {'custom_hooks'},
        'distilled': {'custom_hooks'},
        'no_branch_decay': {'optim_wrapper'}, 'longer': {'train_cfg'},
        'larger_crops': {'model', 'train_cfg', 'crop_size', 'train_pipeline', 'train_dataloader'},
    }  # fmt: skip
    assert differing == changed[path.stem]
    assert cfg.model.backbone == base.model.backbone


@every([path for path in RECIPES if 'model' in path.read_text()])
def test_a_recipe_takes_a_step(path):
    cfg = Config.fromfile(path)
    train_one_step(built(cfg), cfg)


def test_larger_crops_see_as_many_pixels():
    seen = []
    for name in ('uafm_repvgg_a0', 'recipes/larger_crops'):
        cfg = Config.fromfile(CONFIGS / f'camvid/{name}.py')
        seen.append(np.prod(cfg.model.data_preprocessor.size) * cfg.train_cfg.max_iters)
        (crop,) = (t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop')
        assert tuple(crop.crop_size) == tuple(cfg.model.data_preprocessor.size)
    assert seen[0] == pytest.approx(seen[1], rel=1e-3)


def test_class_weights_are_those_of_enet():
    """From the pixels of each class in the 367 training masks."""
    pixels = np.array([
        10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385,
        184967,
    ])  # fmt: skip
    shares = pixels / pixels.sum()
    weights = 1 / np.log(1.02 + shares)
    expected = weights / (shares * weights).sum()
    cfg = Config.fromfile(CONFIGS / 'camvid/recipes/class_weights.py')
    for head in (cfg.model.decode_head, *cfg.model.auxiliary_head):
        assert np.allclose(head.loss_decode.class_weight, expected, atol=0.005)


def test_the_others_are_there_and_the_plain_network_is_the_fused_form():
    assert set(OTHERS) < {path.stem for path in CAMVID}
    init_default_scope('mmseg')
    plain, full = (
        MODELS.build(Config.fromfile(CONFIGS / f'camvid/uafm_{name}_a0.py').model)
        for name in ('plain', 'repvgg')
    )
    for model in (plain, full):
        model.backbone.switch_to_deploy()
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (plain, full)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('path', REALTIME, ids=name_of)
def test_realtime_configs_start_from_imagenet_weights(path):
    text, cfg = path.read_text().split('"""')[1], Config.fromfile(path)
    assert f'tools/train.py configs/realtime/{path.name}' in text
    assert 'not trained here' in text
    widths = ARCHS[cfg.model.backbone.arch].widths
    assert tuple(cfg.model.decode_head.in_channels) == widths[2:]
    found = [(head.in_index, head.in_channels) for head in cfg.model.auxiliary_head]
    assert found == [(0, widths[2]), (1, widths[3])]
    is_qa = cfg.model.backbone.get('block') == 'qa_repvgg'
    assert cfg.model.pretrained == (None if is_qa else PUBLISHED[cfg.model.backbone.arch])
    (crop,) = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop']
    height = 512 if path.stem.endswith('512x1024') else 1024
    assert tuple(crop.crop_size) == tuple(cfg.model.data_preprocessor.size) == (height, 1024)
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end, poly.begin) == (0, 1000, 1000)
    assert poly.end == cfg.train_cfg.max_iters
    assert cfg.tta_model.type == 'SegTTAModel' and cfg.tta_pipeline


@every([p for p in CAMVID + REALTIME if p.stem not in (*OTHERS, 'uafm_mmpretrain_a0')])
def test_ours_train_and_fuse(path):
    cfg = Config.fromfile(path)
    model = built(cfg)
    assert isinstance(model.backbone, DilatedRepVGG)
    train_one_step(model, cfg)
    check_fusing(model)


@every([CONFIGS / f'camvid/{name}.py' for name in (*OTHERS, 'uafm_mmpretrain_a0')])
def test_other_networks_take_a_step(path):
    cfg = Config.fromfile(path)
    model = built(cfg).train()
    data = batch(11)
    for sample in data['data_samples']:
        edges = copy.deepcopy(sample.gt_sem_seg)
        edges.data = (edges.data == 1).to(edges.data.dtype)
        sample.gt_edge_map = edges
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    assert loss.isfinite()
    loss.backward()
    assert model.decode_head.conv_seg.weight.grad.any() if path.stem != 'pidnet_s' else True


@pytest.mark.slow
def test_a_training_on_prepared_data_scores(tmp_path, monkeypatch):
    ids = np.tile(np.arange(12, dtype=np.uint8), (64, 6))[:48, :64]
    draw(tmp_path / 'data/camvid', 'a folder per split', ('train', 'val'), ids=ids % 11)
    for path in (tmp_path / 'data/camvid').glob('*/images/*'):
        import cv2

        cv2.imwrite(str(path), np.repeat(ids[:, :, None] * 20, 3, axis=2))
    monkeypatch.chdir(tmp_path)
    options = {
        'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0, 'val_dataloader.persistent_workers': False,
    }  # fmt: skip
    cfg = launch.load_config(CONFIGS / 'camvid/uafm_repvgg_a0.py', options)
    runner = launch.train(cfg, 'work')
    assert 0 <= runner.message_hub.log_scalars['val/mIoU'].current() <= 100
