"""The configs: they build, and they hold the paper's recipe."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.runner.checkpoint import get_external_models
from torch.nn import functional

from mmseg_repvgg.checkpoint.mmengine_loader import PUBLISHED

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(CONFIGS.glob('*.py'))
PAPER = [p for p in LEAVES if p.name.startswith('pspnet_')]

# Table 8: mIoU, pixel accuracy, images/s
TABLE_8 = {
    'pspnet_repvgg_b1g2_fast': ('78.88', '96.19', '10.9'),
    'pspnet_r50': ('77.17', '95.99', '10.4'),
    'pspnet_repvgg_b1g2': ('78.70', '96.27', '8.0'),
    'pspnet_repvgg_b2_fast': ('79.52', '96.36', '6.9'),
    'pspnet_r101': ('78.51', '96.30', '6.7'),
    'pspnet_repvgg_b2': ('80.57', '96.50', '4.5'),
}


def test_every_row_of_table_8_has_its_config_and_quotes_it():
    assert {p.stem for p in PAPER} == set(TABLE_8)
    for path in PAPER:
        docstring = path.read_text().split('"""')[1]
        assert 'quoted from the paper, not measured here' in docstring
        assert all(number in docstring for number in TABLE_8[path.stem]), path


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_models_and_pipelines_build(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert (
        model.decode_head.in_channels == model.backbone.feat_dim
        if hasattr(model.backbone, 'feat_dim')
        else model.decode_head.in_channels == model.backbone.out_channels[-1]
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        for transform in loader.dataset.pipeline:
            TRANSFORMS.build(transform)


@pytest.mark.parametrize('path', PAPER, ids=lambda p: p.stem)
def test_the_recipe_is_that_of_section_4_3(path):
    cfg = Config.fromfile(path)
    sgd = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert cfg.optim_wrapper.optimizer == sgd
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys == {'head': dict(lr_mult=10.0)}
    (schedule,) = cfg.param_scheduler
    assert (schedule.type, schedule.power, schedule.by_epoch) == ('PolyLR', 0.9, False)
    assert cfg.train_dataloader.batch_size * 8 == 16
    assert cfg.train_cfg.max_iters == 40 * 186  # 2975 images in batches of 16, 40 times
    crop = next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop')
    assert crop.crop_size == cfg.model.data_preprocessor.size == (713, 713)
    assert cfg.model.test_cfg.mode == 'slide'
    assert cfg.model.test_cfg.crop_size == (713, 713)
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
    assert cfg.model.decode_head.align_corners
    # a ResNet has no branches; otherwise the defaults of the device
    rewrites = None if 'repvgg' in path.stem else ('batchnorm', 'dilation', 'pyramid', 'winograd')
    assert [h.get('rewrites') for h in cfg.custom_hooks] == [rewrites]


@pytest.mark.parametrize('path', PAPER, ids=lambda p: p.stem)
def test_void_does_not_count_in_the_loss(path):
    """semseg: ``nn.CrossEntropyLoss(ignore_index=255)``, a mean over the labelled pixels."""
    cfg = Config.fromfile(path)
    init_default_scope('mmseg')
    scores, labels = torch.randn(1, 19, 4, 6), torch.randint(19, (1, 4, 6))
    labels[:, :3] = 255
    expected = functional.cross_entropy(scores, labels, ignore_index=255).item()
    mean_of_all = expected / 4  # negative control: mmseg's default
    for head, weight in ((cfg.model.decode_head, 1), (cfg.model.auxiliary_head, 0.4)):
        loss = MODELS.build(head.loss_decode)(scores, labels, ignore_index=255)
        assert loss.item() == pytest.approx(weight * expected, rel=1e-5)
        default = MODELS.build({**head.loss_decode, 'avg_non_ignore': False})
        found = default(scores, labels, ignore_index=255)
        assert found.item() == pytest.approx(weight * mean_of_all, rel=1e-5)


def test_full_and_fast_dilate_the_layers_that_the_paper_names():
    dilations = {p.stem: Config.fromfile(p).model.backbone.dilations for p in PAPER}
    for arch in ('b1g2', 'b2'):
        assert dilations[f'pspnet_repvgg_{arch}'] == (1, 1, 2, 4)
        fast = dilations[f'pspnet_repvgg_{arch}_fast']
        assert fast == (1, 1, (1,) * 12 + (2,) * 4, 4)
    for depth in (50, 101):
        assert dilations[f'pspnet_r{depth}'] == (1, 1, 2, 4)


@pytest.mark.parametrize('path', PAPER, ids=lambda p: p.stem)
def test_the_recipe_starts_from_the_published_imagenet_weights(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmseg')
    backbone = MODELS.build(cfg.model).backbone  # loads nothing
    source = backbone.init_cfg['checkpoint']
    assert source == cfg.model.pretrained
    if 'repvgg' in path.stem:
        assert source == PUBLISHED[cfg.model.backbone.arch]
    else:
        name = source.removeprefix('open-mmlab://')
        assert name == f'resnet{cfg.model.backbone.depth}_v1c'
        assert f'/{name}-' in get_external_models()[name]
        assert backbone.deep_stem  # the stem of these weights


def test_the_demo_and_the_template_start_from_random_weights():
    for path in set(LEAVES) - set(PAPER):
        assert Config.fromfile(path).model.get('pretrained') is None
