"""mmseg-repvgg check-data and DataCheckHook: every message, on data as users have them."""

import shutil

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from PIL import Image

from mmseg_repvgg.datasets import check_data as module
from mmseg_repvgg.datasets.check_data import check_data
from mmseg_repvgg.engine import launch
from tests.own_data import draw_pairs, own_config


def checked(folder, data=None, options=(), limit=None, **lines):
    """The reports of a config made from the template."""
    config = own_config(folder / 'config.py', data or folder / 'data', **lines)
    return check_data(launch.load_config(config, dict(options)), folder / 'out', limit)


@pytest.fixture
def no_pictures(monkeypatch):
    """Draw nothing, which takes most of the time."""
    for name in ('draw_sheet', 'draw_shares'):
        monkeypatch.setattr(module, name, lambda *args: None)


def problems(*args, **lines):
    return [problem for report in checked(*args, **lines) for problem in report.problems]


def test_counts_sizes_and_shares_are_those_drawn(tmp_path, capsys):
    """Three stripes of 16 rows of 48; one validation mask is all void."""
    data = draw_pairs(tmp_path / 'data')
    cv2.imwrite(str(data / 'masks/val/val0.png'), np.full((48, 64), 255, np.uint8))
    train, val = checked(tmp_path)
    assert train.shares() == {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
    assert val.shares() == {0: 1 / 4, 1: 1 / 4, 2: 1 / 4, 255: 1 / 4}
    assert train.sizes == {(64, 48): 4} and len(train.images) == 4
    assert not train.problems + val.problems + train.notes + val.notes
    text = capsys.readouterr().out
    assert 'train: 4 images, sizes 64x48 (4)' in text
    assert '    2 thing   33.33 %      4 masks  ' + 30 * '█' in text
    assert '  255 ignored  25.00 %      1 masks  ' + 30 * '█' in text
    for name in ('train.png', 'val.png', 'shares.png'):
        assert cv2.imread(str(tmp_path / 'out' / name)).std() > 10


class LoadArray(BaseTransform):
    """An image of four channels, as users store them."""

    def transform(self, results):
        image = np.load(results['img_path'])
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def test_images_that_a_transform_of_the_user_loads_are_not_read(tmp_path):
    data = draw_pairs(tmp_path / 'data')
    for file in list((data / 'images').rglob('*.jpg')):
        np.save(file.with_suffix('.npy'), np.zeros((48, 64, 4), np.uint8))
        file.unlink()
    config = own_config(tmp_path / 'config.py', data, img_suffix='.npy')
    cfg = launch.load_config(config, {})
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline[0] = dict(type=LoadArray)
    train, val = check_data(cfg, tmp_path / 'out')
    assert not train.problems + val.problems + train.notes + val.notes
    assert train.shares() == {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['shares.png']


@pytest.mark.usefixtures('no_pictures')
def test_lists_of_names_instead_of_folders(tmp_path):
    data = draw_pairs(tmp_path / 'data')
    for kind in ('images', 'masks'):
        for file in list((data / kind).rglob('*.*')):
            file.rename(data / kind / file.name)
    for split in ('train', 'val'):
        (data / f'{split}.txt').write_text(f'{split}0\n{split}1\n')
    folders = dict(images='images', masks='masks', lists='{split}.txt')
    train, val = checked(tmp_path, **folders)
    assert [len(train.images), len(val.images)] == [2, 2]
    assert not train.problems + val.problems + train.notes + val.notes
    (data / 'train.txt').write_text('train0.jpg\n')
    (found,) = problems(tmp_path, **folders)
    assert '1 of 1 images of' in found and 'names have no suffix there' in found
    (data / 'train.txt').write_text('train9\n')
    assert 'correct the list' in problems(tmp_path, **folders)[0]
    (data / 'train.txt').write_text('val1\n')
    assert checked(tmp_path, **folders)[1].notes[0].startswith('1 images are also in train')


def each(data, change, kind='masks'):
    for file in list((data / kind).rglob('*.*')):
        change(file)


def write(file, array, **options):
    Image.fromarray(array).save(file, **options)


def coloured(file):
    write(file, np.zeros((48, 64, 3), np.uint8))


def first(data, kind='masks'):
    return data / kind / 'train' / ('train0.png' if kind == 'masks' else 'train0.jpg')


RGB = np.zeros((48, 64, 3), np.uint8)
# what is done to the data, lines of the template, and pieces of the first message
CASES = {
    'wrong suffix of masks': (
        lambda data: each(data, lambda f: f.rename(f.with_name(f'{f.stem}_mask.bmp'))),
        {},
        ('4 of 4 images have no mask', "seg_map_suffix='_mask.bmp' instead of '.png'?"),
    ),
    'a mask is missing': (
        lambda data: first(data).unlink(),
        {},
        ('1 of 4 images have no mask', 'train0.jpg', 'Add the masks, or remove the images'),
    ),
    'heads of 19 classes': (
        lambda data: None,
        dict(options={'model.decode_head.num_classes': 19, 'model.decode_head.out_channels': 19}),
        ('decode_head has num_classes=19, train has 3 class names', 'Set num_classes=3'),
    ),
    'an id that is no class': (
        lambda data: write(first(data), np.full((48, 64), 7, np.uint8)),
        {},
        (
            'train0.png has the ids 7; decode_head has the classes 0 to 2, and 255 is ignored',
            '1 of 4',
        ),
    ),
    'void that is not 255': (
        lambda data: None,
        dict(classes=('sky', 'ground')),
        ('has the ids 2; decode_head has the classes 0 to 1', 'if it is void, set ignore_index'),
    ),
    'only the evaluator has another void': (
        lambda data: None,
        dict(options={'val_evaluator.ignore_index': 2}, classes=('sky', 'ground')),
        ('has the ids 2; decode_head',),
    ),
    'only the heads have another void': (
        lambda data: None,
        dict(
            classes=('sky', 'ground'),
            options={f'model.{h}_head.ignore_index': 2 for h in ('decode', 'auxiliary')},
        ),
        ('val0.png has the ids 2; IoUMetric has the classes 0 to 1, and 255 is ignored',),
    ),
    'no image': (
        lambda data: first(data, 'images').write_bytes(b'hello'),
        {},
        ('train0.jpg cannot be read (not an image)',),
    ),
    'an image cut short': (
        lambda data: first(data, 'images').write_bytes(first(data, 'images').read_bytes()[:700]),
        {},
        ('train0.jpg cannot be read (image file is truncated',),
    ),
    'a mask cut short': (
        lambda data: first(data).write_bytes(first(data).read_bytes()[:60]),
        {},
        ('train0.png cannot be read',),
    ),
    'RGB masks': (
        lambda data: each(data, coloured),
        {},
        (
            'train0.png (and 3 others) has colours',
            '(48, 64, 3)',
            'mmseg-repvgg convert-masks MASKS',
        ),
    ),
    'masks of 0 and 255': (
        lambda data: draw_pairs(data, (0, 255)),
        dict(classes=('background', 'thing')),
        ('all 4 masks hold only 0 and 255', 'mmseg-repvgg convert-masks MASKS OUT --binary'),
    ),
    'ids of 16 bits': (
        lambda data: write(first(data), np.full((48, 64), 258, np.uint16)),
        {},
        ('train0.png has ids above 255',),
    ),
    'a mask of another size': (
        lambda data: write(first(data), np.zeros((24, 32), np.uint8)),
        {},
        ('train0.png is 32x24 for an image of 64x48', 'as large as its image'),
    ),
    'JPEG masks': (
        lambda data: [draw_pairs(data, (0, 1, 60), suffix='.jpg')],
        dict(seg_map_suffix='.jpg'),
        ('is a JPEG, which blurs ids',),
    ),
    'one class name': (
        lambda data: draw_pairs(data, (0, 1)),
        dict(classes=('thing',)),
        ('has the ids 1; decode_head has the classes 0 to 0',),
    ),
}


@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize('name', CASES)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name):
    damage, lines, parts = CASES[name]
    damage(draw_pairs(tmp_path / 'data'))
    found = problems(tmp_path, **lines)
    assert found and not any('\n' in problem for problem in found)
    assert [part for part in parts if part not in found[0]] == [], found


TRAINED = (
    'wrong suffix of masks',
    'heads of 19 classes',
    'only the heads have another void',
    'masks of 0 and 255',
)


@pytest.mark.parametrize(
    'name', [TRAINED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED[1:])]
)
def test_a_training_says_the_same_before_it_starts(tmp_path, name):
    damage, lines, parts = CASES[name]
    damage(draw_pairs(tmp_path / 'data'))
    lines = dict(lines)
    options = lines.pop('options', {})
    config = own_config(tmp_path / 'config.py', tmp_path / 'data', **lines)
    with pytest.raises(ValueError) as raised:
        launch.train(launch.load_config(config, options), str(tmp_path / 'work'))
    text = str(raised.value).replace('train_dataloader', 'train')
    assert [part for part in parts if part not in text] == [], text
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.usefixtures('no_pictures')
def test_empty_data_sets_are_named(tmp_path):
    """Before mmengine builds them, which fails in numpy."""
    data = draw_pairs(tmp_path / 'data')
    text = r"train\S* is empty: no file in .*images/train ends in img_suffix='.png'; .* 4 .jpg. Set"
    with pytest.raises(ValueError, match=text):
        checked(tmp_path, img_suffix='.png')
    config = own_config(tmp_path / 'config.py', data, img_suffix='.png')
    with pytest.raises(ValueError, match=text):
        launch.train(launch.load_config(config), str(tmp_path / 'work'))
    for split in ('train', 'val'):
        (data / f'{split}.txt').write_text('')
    with pytest.raises(ValueError, match='train.txt has no lines'):
        checked(tmp_path, lists='{split}.txt')


@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize(
    ('lines', 'text'),
    [
        (dict(images='pictures/{split}'), "data_prefix.img_path='pictures/train' is not in"),
        (dict(masks='labels/{split}'), "data_prefix.seg_map_path='labels/train' is not in"),
        (dict(lists='{split}.txt'), "ann_file='train.txt' is not in"),
    ],
)
def test_missing_folders_and_lists_are_named(tmp_path, lines, text):
    draw_pairs(tmp_path / 'data')
    with pytest.raises(FileNotFoundError, match=text) as raised:
        checked(tmp_path, **lines)
    assert 'it has images, masks' in str(raised.value)


@pytest.mark.usefixtures('no_pictures')
def test_what_may_be_meant_is_a_note(tmp_path):
    data = draw_pairs(tmp_path / 'data')
    (data / 'images/train/train3.jpg').unlink()
    size = {'model.data_preprocessor.size': (713, 713)}
    train, _ = checked(tmp_path, options=size, classes=('sky', 'ground', 'thing', 'car'))
    assert not train.problems
    assert train.notes[0].startswith('1 masks have no image (') and 'train3.png' in train.notes[0]
    assert train.notes[1] == 'no mask has the classes car'
    assert 'every crop of (32, 32) is padded' in train.notes[2]
    assert 'Set model.data_preprocessor.size=(32, 32)' in train.notes[2]
    _, val = checked(tmp_path, options={'val_evaluator.ignore_index': 1})
    assert 'IoUMetric ignores the class 1 (ground)' in val.notes[0]
    one = checked(tmp_path, classes=('thing',))[0].notes[0]
    assert "name the background too, classes=('background', 'thing')" in one


@pytest.mark.usefixtures('no_pictures')
def test_whole_images_that_align_corners_does_not_fit_are_a_note(tmp_path):
    """33 = 4 * 8 + 1 fits, 48 and 64 do not."""
    draw_pairs(tmp_path / 'data')
    stretched = {f'model.{name}_head.align_corners': True for name in ('decode', 'auxiliary')}
    _, val = checked(tmp_path, options=stretched, crop_size=(33, 33))
    (note,) = val.notes
    assert 'as the crops of (33, 33) have, but whole images are evaluated at (48, 64)' in note
    fits = dict(image_scale=(65, 49), crop_size=(33, 33))
    assert not checked(tmp_path, options=stretched, **fits)[1].notes
    windows = {'model.test_cfg.mode': 'slide', **stretched}
    windows.update({'model.test_cfg.crop_size': (33, 33), 'model.test_cfg.stride': (22, 22)})
    assert not checked(tmp_path, options=windows, crop_size=(33, 33))[1].notes
    assert not checked(tmp_path, options=stretched)[1].notes  # nor do the crops, of 32
    assert not checked(tmp_path, crop_size=(33, 33))[1].notes


@pytest.mark.slow
def test_a_training_notes_images_that_align_corners_does_not_fit(tmp_path):
    stretched = {f'model.{name}_head.align_corners': True for name in ('decode', 'auxiliary')}
    config = own_config(tmp_path / 'config.py', draw_pairs(tmp_path / 'data'), crop_size=(33, 33))
    launch.train(launch.load_config(config, stretched), str(tmp_path / 'work'))
    logs = ''.join(log.read_text() for log in (tmp_path / 'work').rglob('*.log'))
    assert 'but whole images are evaluated at (48, 64)' in logs


@pytest.mark.usefixtures('no_pictures')
def test_images_turned_by_their_exif_data_fit_masks_of_the_turned_size(tmp_path):
    data = draw_pairs(tmp_path / 'data')
    exif = Image.Exif()
    exif[0x0112] = 6
    write(first(data, 'images'), np.zeros((64, 48, 3), np.uint8), exif=exif)
    assert not problems(tmp_path)


@pytest.mark.usefixtures('no_pictures')
def test_a_few_images_are_read_at_the_start_but_all_if_only_0_and_void_are_seen(tmp_path):
    data = draw_pairs(tmp_path / 'data', (0, 255), count=9)
    train, _ = checked(tmp_path, limit=2, classes=('background', 'thing'))
    assert len(train.samples) == 9 and 'all 9 masks hold only 0 and 255' in train.problems[0]
    cv2.imwrite(str(data / 'masks/train/train5.png'), np.ones((48, 64), np.uint8))
    train, _ = checked(tmp_path, limit=2, classes=('background', 'thing'))
    assert not train.problems
    draw_pairs(tmp_path / 'other', count=9)
    assert len(checked(tmp_path, tmp_path / 'other', limit=2)[0].samples) == 2


@pytest.mark.usefixtures('no_pictures')
def test_data_sets_in_wrappers_are_inspected(tmp_path):
    draw_pairs(tmp_path / 'data')
    cfg = launch.load_config(own_config(tmp_path / 'config.py', tmp_path / 'data'))
    part = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=3, dataset=dict(type='ConcatDataset', datasets=[part, part])
    )
    train, _ = check_data(cfg, tmp_path / 'out')
    assert len(train.samples) == 8 and not train.problems


@pytest.mark.slow
def test_the_hook_is_switched_off_by_its_option(tmp_path):
    data = draw_pairs(tmp_path / 'data')
    for file in (data / 'masks/val').iterdir():
        file.unlink()
    shutil.copytree(data / 'masks/train', data / 'masks/val', dirs_exist_ok=True)
    config = own_config(tmp_path / 'config.py', data)
    hooks = dict(custom_hooks=[dict(type='DataCheckHook', images=0)])
    with pytest.raises(Exception, match='val0') as raised:
        launch.train(launch.load_config(config, hooks), str(tmp_path / 'work'))
    assert 'have no mask' not in str(raised.value)
    assert (tmp_path / 'work/iter_2.pth').is_file()  # the first validation found it
