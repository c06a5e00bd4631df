"""configs/own_data.py: what follows from its settings."""

import itertools

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmseg_repvgg.engine import launch
from tests.own_data import draw_pairs, own_config

SIX = ('a', 'b', 'c', 'd', 'e', 'f')
HEADS = ('decode_head', 'auxiliary_head')


def config(folder, **lines):
    return launch.load_config(own_config(folder / 'config.py', 'data', **lines))


def test_classes_and_void_reach_everything_that_needs_them(tmp_path):
    palette = [[i, i, i] for i in range(6)]
    cfg = config(tmp_path, classes=SIX, palette=palette, ignore_index=6)
    for name in HEADS:
        head = cfg.model[name]
        assert (head.num_classes, head.out_channels, head.ignore_index) == (6, 6, 6)
        assert not head.loss_decode.use_sigmoid
        assert not head.align_corners
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo == dict(classes=SIX, palette=palette)
        assert loader.dataset.ignore_index == 6
    assert cfg.val_evaluator.ignore_index == cfg.test_evaluator.ignore_index == 6
    assert cfg.model.data_preprocessor.seg_pad_val == 6
    (crop,) = (t for t in cfg.train_pipeline if t.type == 'RandomCrop')
    assert crop.ignore_index == 6


def test_classes_without_colours_get_some_that_differ(tmp_path):
    cfg = config(tmp_path, classes=tuple(f'class {i}' for i in range(61)))
    palette = cfg.train_dataloader.dataset.metainfo.palette
    assert palette[:2] == [[31, 119, 180], [255, 127, 14]]  # the first two of matplotlib's tab10
    assert len(palette) == 61
    assert len({tuple(colour) for colour in palette}) == 60
    near = [sum(abs(np.subtract(*pair))) for pair in itertools.combinations(palette[:11], 2)]
    assert min(near) > 60


@pytest.mark.parametrize(
    ('scale', 'crop', 'mode'),
    [
        ((640, 480), (320, 320), 'whole'),
        ((640, 480), (312, 312), 'slide'),
        ((480, 640), (312, 312), 'slide'),
        ((64, 48), (320, 320), 'whole'),
    ],
)
def test_sizes_reach_the_padding_and_the_windows(tmp_path, scale, crop, mode):
    cfg = config(tmp_path, image_scale=scale, crop_size=crop)
    assert cfg.model.data_preprocessor.size == cfg.data_preprocessor.size == crop
    test_cfg = cfg.model.test_cfg
    assert test_cfg.mode == mode
    if mode == 'slide':
        assert (test_cfg.crop_size, test_cfg.stride) == (crop, (208, 208))
    assert cfg.test_pipeline[1] == dict(type='Resize', scale=scale, keep_ratio=True)


@pytest.mark.parametrize(
    ('steps', 'warm_up', 'interval'),
    [(1, 1, 1), (100, 10, 100), (1000, 100, 200), (20000, 1000, 2000), (80000, 1000, 8000)],
)
def test_the_schedule_fits_short_and_long_trainings(tmp_path, steps, warm_up, interval):
    cfg = config(tmp_path, max_iters=steps)
    first, second = cfg.param_scheduler
    assert (first.end, second.begin, second.type) == (warm_up, warm_up, 'PolyLR')
    assert cfg.train_cfg.max_iters == steps
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == interval
    assert 1 <= cfg.default_hooks.logger.interval <= max(1, steps // 20)


def test_rates_depend_on_pretrained_weights(tmp_path):
    for weights, rate, heads in ((None, 0.1, 1.0), ('a0.pth', 0.01, 10.0)):
        cfg = config(tmp_path, pretrained=weights)
        assert cfg.model.pretrained == weights
        assert cfg.optim_wrapper.optimizer.lr == rate
        assert cfg.optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult == heads


@pytest.mark.parametrize('arch', ['A0', 'A2', 'B1g2'])
def test_every_architecture_builds(tmp_path, arch):
    cfg = config(tmp_path, arch=arch, classes=SIX)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).eval()
    assert model.backbone.out_channels[-1] == model.decode_head.in_channels
    assert model(torch.zeros(1, 3, 33, 33)).shape[1] == 6
    assert [hook.type for hook in cfg.custom_hooks] == ['RepVGGDeployHook']


def test_a_sigmoid_gives_two_classes_one_output(tmp_path):
    """Worked by hand: logits 1 and -1 are the thing and the background."""
    cfg = config(tmp_path, classes=('background', 'thing'), sigmoid=True)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    for name in HEADS:
        head = getattr(model, name)
        assert (head.num_classes, head.out_channels, head.threshold) == (2, 1, 0.5)
    logits = torch.tensor([[[[1.0, -1.0]]]])
    (sample,) = model.postprocess_result(logits)
    assert sample.pred_sem_seg.data.tolist() == [[[1, 0]]]
    labels = PixelData(data=torch.tensor([[[1, 255]]]))
    sample.gt_sem_seg = labels
    loss = model.decode_head.loss_by_feat(logits, [sample])['loss_ce']
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-5)  # void does not count


@pytest.mark.slow
@pytest.mark.parametrize('sigmoid', [False, True])
def test_a_training_on_two_classes_scores_both(tmp_path, sigmoid):
    draw_pairs(tmp_path / 'data', (0, 1))
    file = own_config(
        tmp_path / 'config.py', tmp_path / 'data', classes=('background', 'thing'), sigmoid=sigmoid
    )
    runner = launch.train(launch.load_config(file), str(tmp_path / 'work'))
    scores = runner.message_hub.log_scalars
    assert 0 <= scores['val/mIoU'].current() <= 100
    assert (tmp_path / 'work/iter_2.pth').is_file()
