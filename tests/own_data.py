"""Small data sets as users have them, and configs/own_data.py with edited lines."""

import re
from pathlib import Path

import cv2
import numpy as np

CONFIGS = Path(__file__).parents[1] / 'configs'
SMALL = dict(
    image_scale=(64, 48),
    crop_size=(32, 32),
    batch_size=2,
    max_iters=2,
    classes=('sky', 'ground', 'thing'),
)


def draw_pairs(root, ids=(0, 1, 2), count=4, size=(48, 64), suffix='.png', splits=('train', 'val')):
    """Images of noise under ``images/<split>``, masks of three stripes under ``masks/<split>``."""
    draw = np.random.default_rng(0)
    for split in splits:
        for kind in ('images', 'masks'):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            mask = np.repeat(np.array(ids), -(-size[0] // len(ids)))[: size[0], None]
            mask = np.broadcast_to(mask, size).astype(np.uint8)
            image = np.repeat(mask[:, :, None] * 20, 3, 2) + draw.integers(0, 9, (*size, 3))
            cv2.imwrite(str(root / f'images/{split}/{split}{i}.jpg'), image)
            cv2.imwrite(str(root / f'masks/{split}/{split}{i}{suffix}'), mask)
    return root


def own_config(path, data_root, **lines):
    """The template with values instead of its own, in a file; returns the file."""
    text = (CONFIGS / 'own_data.py').read_text()
    head, rule, rest = text.partition('# ------')
    for name, value in dict(SMALL, data_root=str(data_root), **lines).items():
        # a, b = 1, 2 becomes a, b = 1, 2; b = 3
        pattern = re.compile(rf'^((?:\w+, )*{name}(?:, \w+)* = .*?)(  #.*)?$', re.MULTILINE)
        head, count = pattern.subn(lambda m, v=value, n=name: f'{m[1]}; {n} = {v!r}', head)
        assert count == 1, name
    path.write_text(head + rule + rest)
    return path
