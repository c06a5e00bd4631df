"""The built-in scenes: what is drawn, and the data set it is written to."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from mmseg_repvgg.datasets.cityscapes import prepare_cityscapes
from mmseg_repvgg.datasets.demo_scenes import (
    DEMO_CLASSES,
    compose_scene,
    dataset,
    make_demo_scenes,
)
from mmseg_repvgg.datasets.demo_scenes.canvas import Camera, Canvas
from mmseg_repvgg.datasets.demo_scenes.street import Light
from mmseg_repvgg.datasets.demo_scenes.vehicles import Pose, draw_car

TOOL = Path(__file__).parents[2] / 'tools' / 'make_demo_scenes.py'
SETTINGS = {'num_train': 3, 'num_val': 2, 'size': (128, 64), 'seed': 5}
CAMERA = Camera(width=160, height=100, focal=100.0, eye=1.5, horizon=50.0, vanishing=80.0, bend=0.0)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def times(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob('*')}


def train_ids(objects: list[dict], width: int, height: int) -> np.ndarray:
    """Draw the polygons as cityscapesscripts does: in their order, those without an id not."""
    image = Image.new('L', (width, height), 255)
    draw = ImageDraw.Draw(image)
    for thing in objects:
        label = name2label[thing['label']]
        if label.id >= 0:
            draw.polygon([tuple(point) for point in thing['polygon']], fill=label.trainId)
    return np.array(image)


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set. Tests that change it copy it first."""
    return make_demo_scenes(tmp_path_factory.mktemp('demo') / 'scenes', **SETTINGS, workers=1)


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / 'scenes'))


# The camera and the canvas


def test_projection() -> None:
    # Ten metres ahead a metre is 100 / 10 = 10 pixels.
    points = [(0, 1.5, 10), (1, 0, 10), (-2, 2.5, 10), (1, 1.5, 100)]
    expected = [[80, 50], [90, 65], [60, 40], [81, 50]]
    np.testing.assert_allclose(CAMERA.project(points), expected)


def test_bend_shifts_to_the_side() -> None:
    bent = Camera(**{**vars(CAMERA), 'bend': 0.02})
    # 0.02 * 10**2 / 2 = 1 metre to the right at 10 metres
    np.testing.assert_allclose(bent.project([(0, 1.5, 10)]), [[90, 50]])
    x, z = bent.ground()
    row, column = 65, 90
    np.testing.assert_allclose(z[row - bent.first_ground, column], 10)
    np.testing.assert_allclose(x[row - bent.first_ground, column], 0, atol=1e-6)


def test_label_is_what_was_painted() -> None:
    canvas = Canvas(CAMERA)
    polygons = [
        np.array([(10.2, 10.1), (60.7, 20.4), (40.3, 80.8)]),
        np.array([(30, 5), (150, 5), (150, 30), (30, 30)], dtype=float),
        np.array([(120, 60), (200, 60), (200, 140), (120, 140)], dtype=float),  # partly outside
    ]
    for polygon in polygons:
        canvas.fill(polygon, [1, 1, 1])
    canvas.label('road', polygons, 7.0)
    labelled = train_ids(canvas.objects, 160, 100) == 0
    painted = canvas.image[..., 0]
    assert labelled[painted > 0.99].all()  # wherever it is all paint
    assert not labelled[painted == 0].any()
    assert labelled.sum() == pytest.approx(painted.sum(), rel=0.05)
    assert (canvas.depth[labelled] == 7).all()
    assert (canvas.depth[~labelled] == 1e4).all()
    for thing in canvas.objects:
        x, y = np.array(thing['polygon']).T
        assert x.min() >= 0 and x.max() < 160 and y.min() >= 0 and y.max() < 100


@pytest.mark.parametrize(
    ('heading', 'red'), [(0.0, True), (np.pi, False)], ids=['drives away', 'comes']
)
def test_tail_lights_are_seen_from_behind(heading: float, red: bool) -> None:
    canvas = Canvas(CAMERA)
    sun = np.array([0.0, 1.0, 0.0])
    light = Light(sun=sun, direct=0.0, sky_top=np.ones(3), sky_low=np.ones(3), clouds=0.0)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        draw_car(canvas, rng, light, Pose(0.0, 8.0, heading))
        r, g, b = np.moveaxis(canvas.image, -1, 0)
        assert ((r > 0.6) & (g < 0.1) & (b < 0.1)).any() == red
    assert {thing['label'] for thing in canvas.objects} == {'car', 'license plate'}


# Scenes


@pytest.mark.slow
def test_classes_are_in_most_scenes() -> None:
    """Every class covers at least 1 pixel in 500 of most scenes, and nothing else occurs."""
    scenes, seen = 12, np.zeros(256)
    for i in range(scenes):
        _, objects = compose_scene(np.random.default_rng(i), 256, 128)
        counts = np.bincount(train_ids(objects, 256, 128).ravel(), minlength=256)
        seen += counts * 500 > 256 * 128
        known = [name2label[name].trainId for name in DEMO_CLASSES]
        assert set(np.flatnonzero(counts)) <= {*known, 255}
    shares = {name: seen[name2label[name].trainId] / scenes for name in DEMO_CLASSES}
    assert min(shares.values()) > 0.6, shares


def test_no_pixel_is_forgotten() -> None:
    """Without the bonnet of the camera car every pixel has a class that counts."""
    for i in range(8):
        _, objects = compose_scene(np.random.default_rng(i), 256, 128)
        kept = [thing for thing in objects if thing['label'] != 'ego vehicle']
        assert (train_ids(kept, 256, 128) != 255).all()


def test_same_numbers_same_scene() -> None:
    image, objects = compose_scene(np.random.default_rng(3), 128, 64)
    again, same = compose_scene(np.random.default_rng(3), 128, 64)
    other, different = compose_scene(np.random.default_rng(4), 128, 64)
    assert (image == again).all() and objects == same
    assert (image != other).mean() > 0.5 and objects != different


@pytest.mark.parametrize(('width', 'height'), [(64, 64), (65, 127), (300, 70)])
def test_any_size(width: int, height: int) -> None:
    for i in range(3):
        image, objects = compose_scene(np.random.default_rng(i), width, height)
        assert image.shape == (height, width, 3) and image.dtype == np.uint8
        points = np.concatenate([thing['polygon'] for thing in objects])
        assert (points >= 0).all() and (points < [width, height]).all()


# The data set


def test_layout(made: Path) -> None:
    names = {
        'train/demoburg/demoburg_000000_000019',
        'train/demoburg/demoburg_000001_000019',
        'train/demoburg/demoburg_000002_000019',
        'val/demostadt/demostadt_000000_000019',
        'val/demostadt/demostadt_000001_000019',
    }
    truth = ['polygons.json', 'labelIds.png', 'labelTrainIds.png']
    assert set(contents(made)) == {
        'demo_scenes.json',
        *(f'leftImg8bit/{name}_leftImg8bit.png' for name in names),
        *(f'gtFine/{name}_gtFine_{kind}' for name in names for kind in truth),
    }
    annotation = json.loads(next(made.rglob('*_polygons.json')).read_text())
    assert (annotation['imgWidth'], annotation['imgHeight']) == (128, 64)
    for path in made.rglob('*.png'):
        with Image.open(path) as image:
            assert image.size == (128, 64)
            assert image.mode == ('RGB' if 'leftImg8bit' in path.name else 'L')


def test_mmseg_finds_all(made: Path) -> None:
    from mmseg.datasets import CityscapesDataset

    folders = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}
    data = CityscapesDataset(data_root=str(made), data_prefix=folders)
    assert len(data) == 3
    assert all(Path(data.get_data_info(i)['seg_map_path']).is_file() for i in range(3))


def test_polygons_and_label_ids_give_the_same_train_ids(own: Path) -> None:
    originals = {path: path.read_bytes() for path in own.rglob('*_labelTrainIds.png')}
    pixels = {path: np.array(Image.open(path)) for path in originals}
    for kinds in (['labelTrainIds.png'], ['labelTrainIds.png', 'polygons.json']):
        for kind in kinds:
            for path in own.rglob(f'*_gtFine_{kind}'):
                path.unlink()
        report = prepare_cityscapes(own, workers=1)
        assert (report.made, report.missing, report.complete) == (5, [], True)
        for path, expected in pixels.items():
            assert (np.array(Image.open(path)) == expected).all()


def test_bytes_depend_on_neither_workers_nor_number(made: Path, tmp_path: Path) -> None:
    more = make_demo_scenes(tmp_path / 'more', 4, 2, size=(128, 64), seed=5, workers=2)
    expected, found = contents(made), contents(more)
    assert len(found) == len(expected) + 4
    for name in set(expected) - {'demo_scenes.json'}:
        assert found[name] == expected[name], name


def test_seed_and_split_and_number_matter(made: Path, tmp_path: Path) -> None:
    other = make_demo_scenes(tmp_path / 'other', 1, 0, size=(128, 64), seed=6, workers=1)
    images = [path.read_bytes() for path in made.rglob('*_leftImg8bit.png')]
    images += [path.read_bytes() for path in other.rglob('*_leftImg8bit.png')]
    assert len(images) == 6 == len(set(images))


def test_second_call_writes_nothing(own: Path) -> None:
    before = times(own)
    make_demo_scenes(own, **SETTINGS)
    assert times(own) == before


def test_lost_files_are_made_again(own: Path) -> None:
    before = contents(own)
    next(own.rglob('*_labelIds.png')).unlink()
    make_demo_scenes(own, **SETTINGS, workers=1)
    assert contents(own) == before


def test_other_settings_are_refused_unless_forced(own: Path) -> None:
    before = contents(own)
    with pytest.raises(ValueError, match='other folder') as caught:
        make_demo_scenes(own, **{**SETTINGS, 'num_train': 1})
    assert '"num_train": 3' in str(caught.value) and '"num_train": 1' in str(caught.value)
    assert 'force=True' in str(caught.value)
    assert contents(own) == before
    make_demo_scenes(own, **{**SETTINGS, 'num_train': 1}, workers=1, force=True)
    after = contents(own)
    assert len(after) == 1 + 3 * 4
    assert all(before[name] == after[name] for name in after if name != 'demo_scenes.json')


def test_interrupted_run_is_taken_up(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stop(rng: np.random.Generator, width: int, height: int) -> object:
        calls.append(rng)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compose_scene(rng, width, height)

    root = tmp_path / 'interrupted'
    with monkeypatch.context() as patch:
        patch.setattr(dataset, 'compose_scene', stop)
        with pytest.raises(KeyboardInterrupt):
            make_demo_scenes(root, **SETTINGS, workers=1)
    assert not (root / 'demo_scenes.json').exists()
    assert contents(make_demo_scenes(root, **SETTINGS, workers=1)) == contents(own)


@pytest.mark.parametrize('force', [False, True])
def test_another_data_set_is_never_touched(tmp_path: Path, force: bool) -> None:
    image = tmp_path / 'leftImg8bit' / 'train' / 'aachen' / 'aachen_000000_000019_leftImg8bit.png'
    image.parent.mkdir(parents=True)
    image.write_bytes(b'precious')
    with pytest.raises(ValueError, match='another data set.*aachen.*another folder'):
        make_demo_scenes(tmp_path, **SETTINGS, force=force)
    assert contents(tmp_path) == {str(image.relative_to(tmp_path)): b'precious'}


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('num_train', -1),
        ('size', (128, 63)),
        ('size', (128,)),
        ('seed', -1),
        ('workers', 0),
    ],
)
def test_bad_settings(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        make_demo_scenes(tmp_path / 'new', **{**SETTINGS, setting: value})
    assert not (tmp_path / 'new' / 'demo_scenes.json').exists()


def test_tool(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'tool'
    numbers = ['--num-train', '3', '--num-val', '2', '--size', '128', '64', '--seed', '5']
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(root), *numbers, '--workers', '1'])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert contents(root) == contents(made)
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(root), '--seed', '6'])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert str(exit_.value.code).startswith('make_demo_scenes: ')
    assert '--force' in str(exit_.value.code) and '\n' not in str(exit_.value.code)
