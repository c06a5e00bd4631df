"""Images, labels and data sets."""

from pathlib import Path

import cv2
import numpy as np

from mmseg_repvgg.datasets.cityscapes import convert_label_ids, prepare_cityscapes
from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes
from mmseg_repvgg.deploy.images import as_bgr, read_image
from mmseg_repvgg.engine import launch
from tests.common import runner_cfg
from tests.wrong_input.table import Table

CASES = Table()

# Images and labels.


def png(array: np.ndarray) -> bytes:
    return cv2.imencode('.png', array)[1].tobytes()


PIXEL = np.full((3, 4, 3), (10, 20, 30), np.uint8)
for name, content, parts in [
    ('empty image', b'', ('x.png cannot be read',)),
    ('image cut short', png(np.zeros((64, 64, 3), np.uint8))[:40], ('x.png is not an image',)),
    ('text as image', b'hello', ('x.png is not an image that OpenCV reads',)),
]:
    call = lambda g, content=content: read_image(g.file(content, 'x.png'))  # noqa: E731
    CASES.add(name, call, ValueError, *parts)
CASES.add(
    'no image', lambda g: read_image(g.folder / 'no.png'), FileNotFoundError, 'no.png not found'
)
for name, array, parts in [
    ('16-bit array', PIXEL.astype(np.uint16), ('uint16', 'uint8, 0 to 255', 'image // 257')),
    ('float array', PIXEL / 255, ('the image is float64', 'convert it')),
    ('array of two channels', PIXEL[:, :, :2], ('(3, 4, 2)', 'must be (H, W, 3) in BGR')),
    ('array without pixels', PIXEL[:0], ('(0, 4, 3)', 'at least one pixel')),
    ('list as image', [[1]], ('the image is list',)),
]:
    CASES.add(name, lambda g, array=array: as_bgr(array), ValueError, *parts)


def data_copy(given, split='train'):
    """Some scenes of its own, for a case to damage: the config, an image and its labels."""
    root = make_demo_scenes(given.folder / 'scenes', 2, 1, (128, 64), workers=1)
    cfg = runner_cfg(root, given.folder / 'work', max_iters=1, val_interval=1)
    image = next((root / 'leftImg8bit' / split).glob('*/*.png'))
    labels = str(image).replace('leftImg8bit/', 'gtFine/', 1)
    return cfg, image, Path(labels.replace('_leftImg8bit.png', '_gtFine_labelTrainIds.png'))


def train_on(given, labels: np.ndarray, split='train'):
    cfg, _, first = data_copy(given, split)
    for file in first.parent.glob('*_labelTrainIds.png'):
        file.write_bytes(png(labels))
    launch.train(cfg, str(given.folder / 'work'))


def fuse_on(given, image: bytes | None = None, labels: bytes | None = None):
    cfg, image_file, label_file = data_copy(given, 'val')
    if image is not None:
        image_file.write_bytes(image)
    if labels is not None:
        label_file.write_bytes(labels)
    return given.fuse(cfg=cfg, num_images=1)


def fill(value, shape=(64, 128)):
    return np.full(shape, value, np.uint8)


IDS = ('_gtFine_labelTrainIds.png has the ids 33', 'classes 0 to 18, and 255 is ignored',
       'prepare-cityscapes PATH --force')  # fmt: skip
FIX = ('Fix the data', '--images 0')
for name, call, parts in [
    ('unknown ids in training', lambda g: train_on(g, fill(33)), IDS),
    ('unknown ids in validation', lambda g: train_on(g, fill(33), 'val'), IDS),
    ('coloured labels', lambda g: train_on(g, fill(3, (64, 128, 3))),
     ('(64, 128, 3)', 'one channel')),
    ('labels too small', lambda g: train_on(g, fill(3, (32, 32))), ('as large as its image',)),
    ('corrupt test image', lambda g: fuse_on(g, b'x'), ('_leftImg8bit.png or its labels', *FIX)),
    ('empty test image', lambda g: fuse_on(g, b''), ('_leftImg8bit.png or its labels', *FIX)),
    ('corrupt test labels', lambda g: fuse_on(g, labels=b'x'), ('_leftImg8bit.png or its', *FIX)),
    ('id 77 in a label image',
     lambda g: convert_label_ids(g.file(png(fill(77)), 'a.png'), g.folder / 'b.png'),
     ('has the id 77, which is not a Cityscapes id (0 to 33)', 'another data set')),
    ('coloured label image',
     lambda g: convert_label_ids(g.file(png(fill(7, (4, 4, 3))), 'a.png'), g.folder / 'b.png'),
     ('shape (4, 4, 3)', 'one channel', '_gtFine_color.png')),
    ('unknown split', lambda g: prepare_cityscapes(g.scenes, splits=['dev']),
     ("['dev']", 'train, val')),
]:  # fmt: skip
    CASES.add(name, call, ValueError, *parts)


def empty_layout(given, *folders):
    for folder in folders:
        (given.folder / folder).mkdir(parents=True)
    return given.folder


CASES.add('no Cityscapes', lambda g: prepare_cityscapes(g.folder / 'no'), FileNotFoundError,
          'is not a folder: give the one that holds leftImg8bit and gtFine')  # fmt: skip
CASES.add('Cityscapes without labels', lambda g: prepare_cityscapes(empty_layout(g, 'leftImg8bit')),
          FileNotFoundError, 'has no folder gtFine: unpack gtFine_trainvaltest.zip')  # fmt: skip
