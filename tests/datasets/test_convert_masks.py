"""mmseg-repvgg convert-masks: colours, values and black and white to ids."""

import numpy as np
import pytest
from PIL import Image

from mmseg_repvgg.datasets.convert_masks import Table, convert_masks, list_values

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (9, 9, 9)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8)).save(path, **options)


def table(folder, text):
    (folder / 'table.txt').write_text(text)
    return Table.read(folder / 'table.txt')


def ids(path):
    image = Image.open(path)
    assert image.mode == 'L'
    return np.array(image).tolist()


def test_colours_become_ids_in_the_order_of_their_names(tmp_path):
    save(tmp_path / 'in/a/x.png', [[RED, GREEN], [GREY, RED]])
    save(tmp_path / 'in/y.bmp', [[GREEN, GREEN]])
    found = table(tmp_path, '# R G B\n0 255 0 big tree # a comment\n\n255 0 0 car\n9 9 9 void\n')
    assert convert_masks(tmp_path / 'in', tmp_path / 'out', found) == 2
    assert ids(tmp_path / 'out/a/x.png') == [[1, 0], [255, 1]]
    assert ids(tmp_path / 'out/y.png') == [[0, 0]]
    assert str(found) == "classes = ('big tree', 'car')\npalette = [[0, 255, 0], [255, 0, 0]]"


def test_values_become_ids_and_those_of_one_name_one_class(tmp_path):
    save(tmp_path / 'in/x.png', [[7, 8], [11, 33]])
    found = table(tmp_path, '7 road\n8 pavement\n33 road\n11 void\n')
    convert_masks(tmp_path / 'in', tmp_path / 'out', found, workers=1)
    assert ids(tmp_path / 'out/x.png') == [[0, 1], [255, 0]]
    assert str(found) == "classes = ('road', 'pavement')\npalette = None"


def test_indices_of_a_palette_are_values(tmp_path):
    image = Image.fromarray(np.array([[0, 5]], np.uint8), 'L').convert('P')
    image.putpalette([i for i in range(256) for _ in range(3)][::-1])
    (tmp_path / 'in').mkdir()
    image.save(tmp_path / 'in/x.png')
    convert_masks(tmp_path / 'in', tmp_path / 'out', table(tmp_path, '0 a\n5 b'))
    assert ids(tmp_path / 'out/x.png') == [[0, 1]]


@pytest.mark.parametrize('name', ['x.png', 'x.jpg'])
@pytest.mark.parametrize('colour', [False, True])
def test_black_and_white_become_0_and_1(tmp_path, name, colour):
    pixels = np.zeros((16, 16, 3) if colour else (16, 16), np.uint8)
    pixels[:, 8:] = 255
    save(tmp_path / 'in' / name, pixels)
    convert_masks(tmp_path / 'in', tmp_path / 'out', None)
    assert ids(tmp_path / 'out/x.png') == [[0] * 8 + [1] * 8] * 16


def test_values_are_listed_as_a_table_to_fill_in(tmp_path):
    save(tmp_path / 'in/x.png', [[RED, GREEN, RED, RED]])
    assert list_values(tmp_path / 'in').splitlines()[1:] == [
        '255 0 0 class0  # 75.00 %',
        '0 255 0 class1  # 25.00 %',
    ]
    assert table(tmp_path, list_values(tmp_path / 'in')).classes == ('class0', 'class1')
    save(tmp_path / 'in/x.png', [[3, 3]])
    assert list_values(tmp_path / 'in').endswith('\n3 class0  # 100.00 %')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('1 2 road', r"line 1: '1 2 road' must be `R G B name` or `value name`"),
        ('300 0 0 road', 'line 1'),
        ('road', 'line 1'),
        ('1 2 3', 'line 1'),
        ('1 a\n1 b', r"line 2: \(1,\) is also 'a'"),
        ('1 a\n1 2 3 b', 'or only lines `value name`'),
        ('5 void', '1 to 254 classes'),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_masks_that_do_not_fit_are_refused(tmp_path):
    source, out = tmp_path / 'in', tmp_path / 'out'
    with pytest.raises(FileNotFoundError, match='has no masks'):
        convert_masks(source, out, None)
    with pytest.raises(FileNotFoundError, match='table .*no.txt not found'):
        Table.read(tmp_path / 'no.txt')
    save(source / 'x.png', [[RED, GREY, GREY]])
    with pytest.raises(ValueError, match='2 pixels .* first 9 9 9. Add a line `9 9 9 void'):
        convert_masks(source, out, table(tmp_path, '255 0 0 car'))
    with pytest.raises(ValueError, match='x.png has colours; the table must have lines `R G B'):
        convert_masks(source, out, table(tmp_path, '1 car'))
    with pytest.raises(ValueError, match='holds the masks themselves'):
        convert_masks(source, source, None)
    save(source / 'x.png', [[0, 1]])
    with pytest.raises(ValueError, match='no mask in .* has values of 128 or more'):
        convert_masks(source, out, None)
    save(source / 'x.bmp', [[0, 1]])
    with pytest.raises(ValueError, match='several masks would be written to .*x.png'):
        convert_masks(source, out, None)
    (source / 'x.bmp').unlink()
    (source / 'x.png').write_bytes(b'hello')
    with pytest.raises(ValueError, match='x.png cannot be read'):
        convert_masks(source, out, None)
