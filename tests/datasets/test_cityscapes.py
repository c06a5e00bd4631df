"""The Cityscapes preparation, on data sets of a few tiny images made here."""

import errno
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmseg_repvgg.atomic_files
from mmseg_repvgg.datasets import cityscapes
from mmseg_repvgg.datasets.cityscapes import (
    convert_label_ids,
    prepare_cityscapes,
    write_label_image,
)

TOOL = Path(__file__).parents[2] / 'tools' / 'prepare_cityscapes.py'

# https://github.com/mcordts/cityscapesScripts, helpers/labels.py: label id -> train id; all others
# of 0 to 33 are ignored, and so is the license plate, whose id -1 is 255 in 8 bits.
TRAIN_IDS = {
    7: 0,  # road
    8: 1,  # sidewalk
    11: 2,  # building
    12: 3,  # wall
    13: 4,  # fence
    17: 5,  # pole
    19: 6,  # traffic light
    20: 7,  # traffic sign
    21: 8,  # vegetation
    22: 9,  # terrain
    23: 10,  # sky
    24: 11,  # person
    25: 12,  # rider
    26: 13,  # car
    27: 14,  # truck
    28: 15,  # bus
    31: 16,  # train
    32: 17,  # motorcycle
    33: 18,  # bicycle
}


def image_path(root: Path, name: str, split: str = 'train') -> Path:
    return root / 'leftImg8bit' / split / name.split('_')[0] / f'{name}_leftImg8bit.png'


def truth_path(root: Path, name: str, kind: str, split: str = 'train') -> Path:
    return root / 'gtFine' / split / name.split('_')[0] / f'{name}_gtFine_{kind}'


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def rectangle(label: str, left: int, top: int, right: int, bottom: int) -> dict:
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {'label': label, 'polygon': corners}


def add_polygons(root: Path, name: str, split: str = 'train') -> None:
    """Add an image, 6x4, of a car with its plate on a road below the sky."""
    save(image_path(root, name, split), np.zeros((4, 6, 3), dtype=np.uint8))
    objects = [
        rectangle('sky', 0, 0, 5, 3),
        rectangle('road', 0, 2, 5, 3),
        rectangle('cargroup', 1, 1, 3, 2),
        rectangle('license plate', 2, 2, 2, 2),
        rectangle('ego vehicle', 0, 3, 5, 3),
    ]
    path = truth_path(root, name, 'polygons.json', split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'imgHeight': 4, 'imgWidth': 6, 'objects': objects}))


# What add_polygons draws, by hand.
POLYGONS_TRAIN_IDS = [
    [10, 10, 10, 10, 10, 10],
    [10, 13, 13, 13, 10, 10],
    [0, 13, 13, 13, 0, 0],
    [255, 255, 255, 255, 255, 255],
]


def add_label_ids(root: Path, name: str, split: str = 'train') -> None:
    """Add an image, 3x2, and its label ids."""
    save(image_path(root, name, split), np.zeros((2, 3, 3), dtype=np.uint8))
    ids = np.array([[0, 7, 8], [26, 33, 3]], dtype=np.uint8)
    save(truth_path(root, name, 'labelIds.png', split), ids)


IDS_TRAIN_IDS = [[255, 0, 1], [13, 18, 255]]


def read(path: Path) -> list:
    return np.array(Image.open(path)).tolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One training image with polygons and one with label ids, one validation image."""
    add_polygons(tmp_path, 'ulm_000000_000019')
    add_label_ids(tmp_path, 'jena_000000_000019')
    add_label_ids(tmp_path, 'bonn_000000_000019', 'val')
    return tmp_path


def files(root: Path) -> dict[str, int]:
    """Return the time of change of every file."""
    return {str(path): path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()}


def test_every_label_id_becomes_its_train_id(tmp_path: Path) -> None:
    ids = np.array([[*range(34), 255]], dtype=np.uint8)
    source = save(tmp_path / 'a_gtFine_labelIds.png', ids)
    convert_label_ids(source, tmp_path / 'b.png')
    assert read(tmp_path / 'b.png') == [[TRAIN_IDS.get(i, 255) for i in (*range(34), 255)]]


def test_polygons_and_label_ids_become_train_ids(root: Path) -> None:
    report = prepare_cityscapes(root, workers=1)
    assert (report.made, report.skipped, report.missing, report.complete) == (3, 0, [], True)
    assert report.counts[0] == 'train: 2 images, 2 label images made, 0 already there'
    made = truth_path(root, 'ulm_000000_000019', 'labelTrainIds.png')
    assert read(made) == POLYGONS_TRAIN_IDS
    assert Image.open(made).mode == 'L'
    assert read(truth_path(root, 'jena_000000_000019', 'labelTrainIds.png')) == IDS_TRAIN_IDS
    assert read(truth_path(root, 'bonn_000000_000019', 'labelTrainIds.png', 'val')) == IDS_TRAIN_IDS


def test_polygons_are_preferred_to_label_ids(root: Path) -> None:
    name = 'ulm_000000_000019'
    save(truth_path(root, name, 'labelIds.png'), np.full((4, 6), 7, dtype=np.uint8))
    prepare_cityscapes(root, workers=1)
    assert read(truth_path(root, name, 'labelTrainIds.png')) == POLYGONS_TRAIN_IDS


def test_several_processes_make_the_same(root: Path) -> None:
    assert prepare_cityscapes(root, workers=2).made == 3
    made = truth_path(root, 'ulm_000000_000019', 'labelTrainIds.png')
    assert read(made) == POLYGONS_TRAIN_IDS


def test_second_run_changes_nothing(root: Path) -> None:
    prepare_cityscapes(root, workers=1)
    before = files(root)
    report = prepare_cityscapes(root, workers=1)
    assert (report.made, report.skipped, report.complete) == (0, 3, True)
    assert files(root) == before


def test_force_makes_them_again(root: Path) -> None:
    prepare_cityscapes(root, workers=1)
    made = truth_path(root, 'ulm_000000_000019', 'labelTrainIds.png')
    save(made, np.zeros((4, 6), dtype=np.uint8))
    prepare_cityscapes(root, workers=1)
    assert read(made) == np.zeros((4, 6)).tolist()  # without force it stays as it is
    assert prepare_cityscapes(root, workers=1, force=True).made == 3
    assert read(made) == POLYGONS_TRAIN_IDS


def test_empty_label_image_is_made_again(root: Path) -> None:
    made = truth_path(root, 'ulm_000000_000019', 'labelTrainIds.png')
    made.touch()
    assert prepare_cityscapes(root, workers=1).made == 3
    assert read(made) == POLYGONS_TRAIN_IDS


def test_only_the_splits_asked_for(root: Path) -> None:
    report = prepare_cityscapes(root, workers=1, splits=['val'])
    assert report.counts == ['val: 1 images, 1 label images made, 0 already there']
    assert (report.made, report.complete) == (1, True)


def test_image_without_annotation(root: Path) -> None:
    for i in range(5):
        name = f'ulm_{i:06d}_000099'
        save(image_path(root, name), np.zeros((2, 2, 3), dtype=np.uint8))
    report = prepare_cityscapes(root, workers=1)
    assert not report.complete
    assert report.made == 3  # what can be made is made
    (message,) = report.missing
    assert message.startswith('train: no annotation for 5 (ulm/ulm_000000_000099, ')
    assert 'of 7 images' in message
    assert 'ulm_000004_000099' not in message
    assert 'gtFine_trainvaltest.zip' in message


def test_annotation_without_image(root: Path) -> None:
    image_path(root, 'jena_000000_000019').unlink()
    report = prepare_cityscapes(root, workers=1)
    assert report.complete
    assert report.missing == ['train: no image for 1 (jena/jena_000000_000019) annotations']


def test_empty_split(root: Path) -> None:
    image_path(root, 'bonn_000000_000019', 'val').unlink()
    report = prepare_cityscapes(root, workers=1)
    assert not report.complete
    assert any(
        message.startswith('val: no image like') and 'leftImg8bit_trainvaltest.zip' in message
        for message in report.missing
    )


def test_test_split_needs_no_annotation(root: Path) -> None:
    save(image_path(root, 'berlin_000000_000019', 'test'), np.zeros((2, 2, 3), dtype=np.uint8))
    report = prepare_cityscapes(root, workers=1)
    assert report.complete
    (message,) = report.missing
    assert 'test: no annotation for 1 (berlin/berlin_000000_000019)' in message
    assert 'not public' in message


@pytest.mark.parametrize('name', ['leftImg8bit', 'gtFine'])
def test_folder_is_missing(root: Path, name: str) -> None:
    (root / name).rename(root / 'elsewhere')
    with pytest.raises(
        FileNotFoundError, match=f'no folder {name}: unpack {name}_trainvaltest.zip'
    ):
        prepare_cityscapes(root)


def test_root_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder.*cityscapes-dataset.com'):
        prepare_cityscapes(tmp_path / 'nowhere')


@pytest.mark.parametrize('splits', ['train', ['train', 'valid']])
def test_unknown_split(root: Path, splits: object) -> None:
    with pytest.raises(ValueError, match='some of train, val, test'):
        prepare_cityscapes(root, splits=splits)  # type: ignore[arg-type]


def test_bad_workers(root: Path) -> None:
    with pytest.raises(ValueError, match='workers is 0'):
        prepare_cityscapes(root, workers=0)


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"imgHeight": 4, "imgWi', 'not a whole Cityscapes annotation'),
        ('{"imgHeight": 4, "imgWidth": 6}', 'not a whole Cityscapes annotation'),
        (
            json.dumps(
                {'imgHeight': 4, 'imgWidth': 6, 'objects': [rectangle('unicorn', 0, 0, 5, 3)]}
            ),
            "Label 'unicorn' not known",
        ),
    ],
    ids=['cut off', 'no objects', 'unknown label'],
)
def test_bad_polygons(
    root: Path, text: str, message: str, workers: int, capsys: pytest.CaptureFixture
) -> None:
    path = truth_path(root, 'ulm_000000_000019', 'polygons.json')
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_cityscapes(root, workers=workers)
    assert str(path) in str(caught.value)
    assert not truth_path(root, 'ulm_000000_000019', 'labelTrainIds.png').exists()
    assert capsys.readouterr().out == ''  # json2labelImg prints its usage


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\x89PNG cut off', 'not a whole PNG image'),
        (np.full((2, 3), 77, dtype=np.uint8), 'has the id 77, which is not a Cityscapes id'),
        (np.full((2, 3), 7000, dtype=np.uint16), 'has the id 7000'),
        (np.zeros((2, 3, 3), dtype=np.uint8), r'shape \(2, 3, 3\).*one channel'),
    ],
    ids=['cut off', 'unknown id', 'unknown id above 8 bits', 'RGB'],
)
def test_bad_label_ids(root: Path, content: object, message: str) -> None:
    path = truth_path(root, 'jena_000000_000019', 'labelIds.png')
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, np.asarray(content))
    with pytest.raises(ValueError, match=message) as caught:
        prepare_cityscapes(root, workers=1)
    assert str(path) in str(caught.value)
    assert not truth_path(root, 'jena_000000_000019', 'labelTrainIds.png').exists()


def test_nothing_is_left_when_writing_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = []

    def write_half(source: str, target: str, encoding: str) -> None:
        Path(target).write_bytes(b'half')
        halves.append(Path(target).name)
        raise RuntimeError('no more')

    monkeypatch.setattr(cityscapes, 'json2labelImg', write_half)
    before = files(root)
    source = truth_path(root, 'ulm_000000_000019', 'polygons.json')
    target = truth_path(root, 'ulm_000000_000019', 'labelTrainIds.png')
    with pytest.raises(ValueError, match='no more'):
        write_label_image(source, target, 'trainIds')
    assert files(root) == before
    # While it was there, neither mmseg's scan nor ours could take it for a label image.
    (half,) = halves
    assert half.startswith('.')
    assert not half.endswith('_gtFine_labelTrainIds.png')


def test_read_only_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, 'Read-only file system', str(source))

    monkeypatch.setattr(mmseg_repvgg.atomic_files.os, 'replace', refuse)
    before = files(root)
    with pytest.raises(OSError, match='labelTrainIds.png was not written: Read-only .* Check that'):
        prepare_cityscapes(root, workers=1)
    assert files(root) == before


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run the tool and return its exit code, or the message with which it exits with 1."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(TOOL), run_name='__main__')
    return exit_.value.code


def test_tool(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_tool(monkeypatch, str(root), '--workers', '1') == 0
    out = capsys.readouterr().out
    assert 'train: 2 images, 2 label images made, 0 already there' in out
    save(image_path(root, 'ulm_000009_000019'), np.zeros((2, 2, 3), dtype=np.uint8))
    assert run_tool(monkeypatch, str(root), '--workers', '1') == 1
    assert 'no annotation for 1 (ulm/ulm_000009_000019)' in capsys.readouterr().out
    message = run_tool(monkeypatch, str(root / 'nowhere'))
    assert isinstance(message, str)
    assert message.startswith('prepare_cityscapes: ')
    assert '\n' not in message
