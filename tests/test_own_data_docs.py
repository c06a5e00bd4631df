"""docs/own-data.md: its commands run as they are, in their order, on a small drawn data set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.own_data import draw_pairs, own_config

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / 'docs/own-data.md').read_text()
COLOURS = np.array([[128, 64, 128], [70, 130, 180], [0, 0, 0]], np.uint8)


def as_colours(mask):
    return cv2.cvtColor(COLOURS[cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)], cv2.COLOR_RGB2BGR)


def settings_of_the_template():
    head = (PROJECT / 'configs/own_data.py').read_text().partition('# ----')[0]
    lines = re.findall(r'^(\w.*?) = ', head, re.MULTILINE)
    return {name for line in lines for name in line.split(', ')}


def test_every_setting_of_the_template_is_explained():
    table = TEXT.partition('| setting |')[2].partition('\n\n')[0]
    rows = re.findall(r'^\| (`.*?) \|', table, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
    assert explained == settings_of_the_template()
    assert len(rows) == 12


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    """Steps, crops and image sizes are smaller; all else is as in the text."""
    data = draw_pairs(tmp_path / 'data/own')
    for mask in sorted((data / 'masks').rglob('*.png')):
        for folder, pixels in (('colours', as_colours(mask)), ('black_white', None)):
            target = data / folder / mask.relative_to(data / 'masks')
            target.parent.mkdir(parents=True, exist_ok=True)
            if pixels is None:
                pixels = np.where(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) == 1, 255, 0)
            cv2.imwrite(str(target), pixels)
        mask.unlink()
    shims = tmp_path / 'bin'
    shims.mkdir()
    for name, arguments in (('python', ''), ('mmseg-repvgg', '-m mmseg_repvgg')):
        (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (shims / name).chmod(0o755)
    env = dict(os.environ, PATH=f'{shims}:{os.environ["PATH"]}')
    blocks = re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)
    assert len(blocks) == 7
    printed = ''
    for block in blocks:
        for command in block.splitlines():
            command = command.replace('iter_20000', 'iter_2').replace('576 1024', '48 64')
            done = subprocess.run(
                ['bash', '-c', command], cwd=tmp_path, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, f'{command}\n{done.stdout}\n{done.stderr}'
            printed += done.stdout
            if command.startswith('cp '):
                own_config(tmp_path / 'my_data.py', 'data/own/')
            if command.endswith('> colours.txt'):
                table = (tmp_path / 'colours.txt').read_text()
                assert re.findall(r'^(\d+ \d+ \d+) class\d', table, re.MULTILINE)
                named = '128 64 128 sky\n70 130 180 ground\n0 0 0 thing\n'
                (tmp_path / 'colours.txt').write_text(named)
    assert "classes = ('sky', 'ground', 'thing')" in printed
    assert 'palette = [[128, 64, 128], [70, 130, 180], [0, 0, 0]]' in printed
    binary = cv2.imread(str(data / 'binary_masks/val/val0.png'), cv2.IMREAD_GRAYSCALE)
    assert np.unique(binary).tolist() == [0, 1]
    assert 'train: 4 images, sizes 64x48 (4)' in printed
    work = tmp_path / 'work_dirs/my_data'
    assert {p.name for p in (work / 'data').iterdir()} == {'shares.png', 'train.png', 'val.png'}
    for name in ('curves', 'first', 'first_iou', 'classes', 'branches', 'difference'):
        assert (tmp_path / f'{name}.png').is_file(), name
    assert len(list((work / 'pictures').rglob('*.png'))) == 4
    assert len(list((tmp_path / 'predictions').glob('*_overlay.jpg'))) == 4
    scores = re.findall(r'mIoU: +([\d.]+)', printed)
    assert len(scores) >= 3 and scores[-1] == scores[-2]  # exported as in PyTorch
