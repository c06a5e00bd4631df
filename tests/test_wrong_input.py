"""Wrong input is refused by an error with the value, what is allowed and the fix.

The table is in ``tests/wrong_input``: for each case what is done, the kind of error, and pieces of
its text. What looks wrong and is not follows at the end.
"""

import copy

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmseg_repvgg.datasets.cityscapes import prepare_cityscapes
from mmseg_repvgg.deploy.images import read_image
from mmseg_repvgg.engine import launch
from mmseg_repvgg.reparam.values import faults
from tests.common import randomise_batchnorms, runner_cfg
from tests.wrong_input import arguments, checkpoints, configs, data, places
from tests.wrong_input.checkpoints import VARIANCE, with_value
from tests.wrong_input.data import PIXEL, data_copy, fill, png, train_on
from tests.wrong_input.table import Given

TABLES = (checkpoints, arguments, configs, data, places)
REFUSED = {name: case for table in TABLES for name, case in table.CASES.items()}


@pytest.fixture(scope='module')
def trained(scenes):
    torch.manual_seed(0)  # made before the seed that each test sets
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, 'work')
    return cfg, randomise_batchnorms(MODELS.build(cfg.model)).state_dict()


@pytest.fixture
def given(trained, scenes, tmp_path):
    cfg, state = copy.deepcopy(trained[0]), dict(trained[1])
    return Given(tmp_path, scenes, cfg, state)


@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused_for_its_reason(given, name):
    call, error, parts = REFUSED[name]
    with pytest.raises(error) as raised:
        call(given)
    text = str(raised.value)
    assert [part for part in parts if part not in text] == [], text
    # tools end with one line for errors of this package only
    module = raised.traceback[-1].frame.f_globals['__name__']
    assert module.startswith('mmseg_repvgg.'), module


def test_there_are_enough_cases():
    assert len(REFUSED) == sum(len(table.CASES) for table in TABLES) >= 60


# What looks wrong and is not.


def variance_zero(given):
    """A channel that never fires has no variance; eps keeps its fused form finite and equal."""
    given.is_accepted = True
    return given.fuse(with_value(given, VARIANCE, 0.0)).on_random.max_rel


def half(given):
    given.is_accepted = True
    state = {n: t.half() if t.is_floating_point() else t for n, t in given.state.items()}
    return given.fuse(state).on_random.max_rel


@pytest.mark.parametrize('call', [variance_zero, half])
def test_weights_that_are_fine_fuse(given, call):
    assert 0 < call(given) < 1e-4


def test_infinite_masks_and_meta_tensors_are_no_faults():
    mask = torch.full((2, 2), -float('inf'))
    assert faults({'attn_mask': mask, 'a.weight': torch.ones(1, device='meta'), 'n': 3}) == ''
    found = faults({f'{i}.weight': mask for i in range(5)})
    assert found.startswith('0.weight (4 of 4 values NaN or infinite), 1.weight')
    assert found.endswith(' and 2 more')


GREY = np.full((3, 4), 7, np.uint8)
READ = {
    'grey': (GREY, np.repeat(GREY[:, :, None], 3, 2)),
    '16 bits': (PIXEL.astype(np.uint16) * 257, PIXEL),
    'alpha': (np.dstack([PIXEL, np.zeros((3, 4), np.uint8)]), PIXEL),
    'one pixel': (PIXEL[:1, :1], PIXEL[:1, :1]),
}


@pytest.mark.parametrize('kind', READ)
def test_images_of_other_kinds_are_read_as_colour(given, kind):
    content, expected = READ[kind]
    assert np.array_equal(read_image(given.file(png(content), 'x.png')), expected)


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (63, 65)])
def test_images_smaller_than_the_crop_are_compared(given, size):
    given.is_accepted = True
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    cfg, file, _ = data_copy(given, 'val')
    file.write_bytes(png(image))
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='PackSegInputs'),
    ]
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(43, 43))
    report = given.fuse(cfg=cfg, num_images=1)
    assert report.num_images == 1
    assert report.on_images.max_rel < 1e-4


def test_training_pads_images_smaller_than_the_crop(given):
    given.cfg.merge_from_dict({'train_dataloader.dataset.pipeline.2.crop_size': (96, 96)})
    given.cfg.merge_from_dict({'model.data_preprocessor.size': (96, 96)})
    given.cfg.train_cfg.max_iters = 1
    runner = launch.train(given.cfg, str(given.folder / 'work'))
    assert runner.iter == 1


def test_labels_that_are_all_ignored_are_fine(given):
    train_on(given, fill(255))


def test_pairs_that_are_missing_are_counted_and_named(given):
    _, image, labels = data_copy(given)
    for file in labels.parent.glob(f'{image.name.split("_left")[0]}*'):
        file.unlink()
    report = prepare_cityscapes(given.folder / 'scenes', workers=1)
    assert not report.complete
    (message,) = report.missing
    assert 'train: no annotation for 1 (' in message
    assert 'unpack gtFine_trainvaltest.zip' in message
    dataset = given.cfg.train_dataloader.dataset
    dataset.data_root = str(given.folder / 'scenes')
    with pytest.raises(FileNotFoundError, match='_gtFine_labelTrainIds.png'):
        list(DATASETS.build(dataset))
