"""LabelCheckHook in real Runners: what each head and metric knows, and what mmseg would score."""

import logging

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmengine.structures import PixelData
from PIL import Image
from torch import nn

from mmseg_repvgg.engine import LabelCheckHook
from mmseg_repvgg.engine.label_hook import _ids, _is_padded
from mmseg_repvgg.engine.label_readers import training_readers
from tests.common import runner_cfg

SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)
HEADS = ('decode_head', 'auxiliary_head')
TWO = ('background', 'car')


def data(folder, ids):
    """Four images of 64x64 a split, with random labels of some ids."""
    draw = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('images', 'labels'):
            (folder / kind / split).mkdir(parents=True)
        for i in range(4):
            image = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            labels = draw.choice(np.array(ids, np.uint8), (64, 64))
            cv2.imwrite(str(folder / 'images' / split / f'{i}.png'), image)
            cv2.imwrite(str(folder / 'labels' / split / f'{i}.png'), labels)
    return folder


def config(folder, ids, names=TWO, hooks=('LabelCheckHook',), dataset=(), **head):
    """Two iterations and a validation on such data; settings of both heads."""
    root = data(folder / 'data', ids)
    cfg = runner_cfg(root, folder / 'work', max_iters=2, custom_hooks=[])
    cfg.custom_hooks = [dict(type=name) for name in hooks]
    cfg.experiment_name = str(folder)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset = dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'labels/{split}'),
            img_suffix='.png',
            seg_map_suffix='.png',
            metainfo=dict(classes=names, palette=[[i, 0, 0] for i in range(len(names))]),
            pipeline=cfg[f'{split}_dataloader'].dataset.pipeline,
            **dict(dataset),
        )
    for name in HEADS:
        cfg.model[name].update(dict(num_classes=len(names)) | head)
    return cfg


def train(cfg):
    """The scores and the warnings of a training."""
    runner, said = Runner.from_cfg(cfg), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    scores = {
        key.rpartition('/')[2]: float(value.current())
        for key, value in runner.message_hub.log_scalars.items()
        if key.startswith('val/') and 'time' not in key
    }
    return scores, [text for text in said if 'label' in text.lower() or 'num_classes' in text]


@pytest.mark.parametrize(
    ('ids', 'names', 'head', 'dataset'),
    [
        pytest.param(
            *((0, 1), ('car',), dict(num_classes=1, loss_decode=SIGMOID), {}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *((0, 1), ('car',), dict(num_classes=1, out_channels=1, loss_decode=SIGMOID), {}),
            marks=pytest.mark.slow,
        ),
        ((0, 1), TWO, dict(out_channels=1, threshold=0.4, loss_decode=SIGMOID), {}),
        pytest.param((0, 1, 2), TWO, {}, dict(reduce_zero_label=True), marks=pytest.mark.slow),
        pytest.param((0, 1, 255), TWO, {}, {}, marks=pytest.mark.slow),
    ],
    ids=['one class', 'one class, one channel', 'two classes, one channel', 'reduced', 'ignored'],
)
def test_what_mmseg_trains_and_scores_is_not_refused(tmp_path, ids, names, head, dataset):
    """Losses and scores are those without the hook, which says nothing."""
    found = []
    for name, hooks in (('without', ()), ('with', ('LabelCheckHook',))):
        cfg = config(tmp_path / name, ids, names, hooks, dataset, **head)
        found.append(train(cfg))
    assert found[0] == found[1]
    assert 'mIoU' in found[0][0] and not found[0][1]


def ignored_by_metrics(cfg, ignored):
    cfg.val_evaluator.ignore_index = ignored
    return cfg


def test_another_ignore_index_is_used_by_heads_and_metrics(tmp_path):
    cfg = config(tmp_path, (0, 1, 2), ignore_index=2)
    cfg.model.data_preprocessor.seg_pad_val = 2
    assert not train(ignored_by_metrics(cfg, 2))[1]


def test_the_metrics_must_ignore_what_the_heads_do(tmp_path):
    """mmseg would count the pixels as wrong predictions: said at the start, refused when scored."""
    cfg = config(tmp_path, (0, 1, 2), ignore_index=2)
    labels = r'labels/val/0.png has the ids 2; IoUMetric has the classes 0 to 1, and 255 is ignored'
    with pytest.raises(ValueError, match=labels + '.*ignore_index of the evaluators'):
        train(cfg)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (dict(auxiliary_head=dict(num_classes=2)), 'ids 2; auxiliary_head has the classes 0 to 1,'),
        (dict(decode_head=dict(num_classes=2)), 'ids 2; decode_head has the classes 0 to 1,'),
        (dict(auxiliary_head=dict(ignore_index=2)), 'ids 255; auxiliary_head .* and 2 is ignored'),
        (
            dict(decode_head=dict(num_classes=1, loss_decode=dict(type='CrossEntropyLoss'))),
            'ids 1, 2; decode_head has the classes 0 to 0,',
        ),
    ],
)
def test_every_head_is_checked(tmp_path, change, text):
    cfg = config(tmp_path, (0, 1, 2, 255), ('a', 'b', 'c'))
    cfg.merge_from_dict(dict(model=change))
    with pytest.raises(ValueError, match=text):
        train(cfg)


def test_padding_is_checked_as_labels_are(tmp_path):
    cfg = config(tmp_path, (0, 1), ignore_index=0)
    cfg.model.data_preprocessor.size = (96, 96)
    with pytest.raises(ValueError, match=r'pads labels with seg_pad_val=255; decode_head .* 0 is'):
        train(cfg)


@pytest.mark.parametrize('sizes', [[(64, 64)] * 2, [(64, 63)] * 2, [(64, 64), (64, 32)]])
@pytest.mark.parametrize('settings', [dict(size=(64, 64)), dict(size_divisor=32)])
def test_padding_is_foreseen(sizes, settings):
    """As mmseg's preprocessor pads."""
    from mmseg.models.data_preprocessor import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    preprocessor = SegDataPreProcessor(seg_pad_val=77, **settings)
    samples = [SegDataSample() for _ in sizes]
    for sample, size in zip(samples, sizes, strict=True):
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size))
    images = [torch.zeros(3, *size) for size in sizes]
    padded = preprocessor(dict(inputs=images, data_samples=samples), training=True)
    is_padded = any((s.gt_sem_seg.data == 77).any() for s in padded['data_samples'])
    assert _is_padded(preprocessor, sizes) == is_padded


def test_classes_and_names_that_differ_are_said(tmp_path):
    _, said = train(config(tmp_path, (0, 1), num_classes=19))
    assert [text.partition(' has')[0] for text in said] == [*HEADS, 'decode_head']
    assert 'num_classes=19, the data set has 2 class names. Set num_classes=2' in said[0]


def test_heads_and_metrics_that_ignore_different_ids_are_said(tmp_path):
    cfg = config(tmp_path, (0, 1), ignore_index=5)
    cfg.model.data_preprocessor.seg_pad_val = 5
    _, said = train(cfg)
    assert len(said) == 1
    assert '5 is ignored. IoUMetric has the classes 0 to 1, and 255 is ignored' in said[0]


@pytest.mark.parametrize(
    'hooks',
    [pytest.param(['LabelCheckHook'], marks=pytest.mark.slow), ['LabelCheckHook'] * 2],
    ids=['once', 'twice'],
)
def test_masks_of_0_and_255_are_said_once(tmp_path, hooks):
    """All of the foreground is ignored, and a model that knows one class scores about 100."""
    scores, said = train(config(tmp_path, (0, 255), hooks=hooks))
    assert scores['mAcc'] > 99
    assert len(said) == 1
    assert 'all labels of 4 batches are 0 or 255, and 255 is ignored' in said[0]
    assert 'convert 255 to 1' in said[0]


def test_ids_are_found_whatever_the_labels_are():
    labels = torch.tensor([[[3, 255, 3, 0]]])
    for dtype in (torch.uint8, torch.int64, torch.float32):
        assert _ids(labels.to(dtype)) == [0, 3, 255]
    assert _ids(torch.tensor([-1, 70000, 2])) == [-1, 2, 70000]
    assert _ids(torch.tensor([], dtype=torch.int64)) == []


def test_heads_that_make_their_own_labels_are_left_out():
    class Edges(nn.Module):
        num_classes, ignore_index, boundary_threshold = 2, 255, 0.1

    class Classes(nn.Module):
        num_classes, ignore_index = 19, 255

    model = nn.Module()
    model.decode_head = nn.ModuleList([Classes(), Classes()])
    model.auxiliary_head = nn.ModuleList([Edges(), Classes()])
    names = [reader.name for reader in training_readers(model)]
    assert names == ['decode_head[0]', 'decode_head[1]', 'auxiliary_head[1]']
    assert training_readers(nn.Linear(1, 1)) == []


def test_batches_of_other_models_are_not_looked_at():
    runner = type('Runner', (), dict(model=nn.Linear(1, 1), hooks=[], val_loop=None))()
    for batch in ((torch.zeros(1), 3), dict(inputs=torch.zeros(1)), dict(data_samples=3), None):
        LabelCheckHook().before_train_iter(runner, 0, batch)
        LabelCheckHook().before_val_iter(runner, 0, batch)


@pytest.mark.parametrize(
    ('split', 'orientation'),
    [
        ('train', 6),
        ('val', 1),
        pytest.param('train', 1, marks=pytest.mark.slow),
        pytest.param('val', 6, marks=pytest.mark.slow),
    ],
)
def test_labels_that_were_not_turned_with_their_image_are_said_to_be_exif(
    tmp_path, split, orientation
):
    cfg = config(tmp_path, (0, 1))
    cfg[f'{split}_dataloader'].dataset.img_suffix = '.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(4):  # 64x96, as labels of 64x96 are drawn on it; or labels of another size
        shape = (64, 96) if orientation == 6 else (96, 64)
        file = tmp_path / 'data' / 'images' / split / f'{i}.jpg'
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(file, exif=exif.tobytes())
        labels = np.zeros((64, 96), np.uint8)
        cv2.imwrite(str(tmp_path / 'data' / 'labels' / split / f'{i}.png'), labels)
    with pytest.raises(ValueError, match='must be one channel as large as its image') as error:
        train(cfg)
    said = 'jpg has the EXIF orientation 6, by which mmcv turns the image and not its labels'
    assert (said in str(error.value)) == (orientation == 6)
