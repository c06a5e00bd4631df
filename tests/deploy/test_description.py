"""The description of an exported model: what is refused, and what a file of ONNX holds of it."""

import json
from dataclasses import fields

import pytest

from mmseg_repvgg.deploy.description_checks import CHECKS, COLOR_TYPES
from mmseg_repvgg.deploy.images import READING
from mmseg_repvgg.deploy.model_description import ModelDescription, description_path
from mmseg_repvgg.deploy.onnx_metadata import KEYS, write_metadata
from tests.deploy.networks import INFO, described


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        (dict(size=(8,)), r'size=\(8,\) must be \(height, width\) in pixels, both at least 1'),
        (dict(size=[8, 8]), r'size=\[8, 8\] must be'),
        (dict(stride=(8, 0)), r'stride=\(8, 0\) must be .* or null'),
        (dict(dynamic_batch=1), 'dynamic_batch=1 must be true or false'),
        (dict(dynamic_size='no'), "dynamic_size='no' must be true or false"),
        (dict(mean=(0, 0)), r'mean=\(0, 0\) must be 3 finite numbers, one per channel'),
        (dict(mean=(0, 0, float('nan'))), 'mean=.*nan.* must be 3 finite numbers'),
        (dict(std=(1, 0, 1)), 'must not be 0: images are divided by it'),
        (dict(std='abc'), "std='abc' must be a list of numbers"),
        (dict(classes=()), r'classes=\(\) must be names, at least one'),
        (dict(classes='road'), "classes='road' must be names"),
        (dict(classes=('a', 1, 'b')), 'must be names'),
        (
            dict(palette=((0, 0, 256),) * 3),
            r'\(0, 0, 256\) of the palette must be red, green, blue',
        ),
        (dict(palette=((0, 0, 0),)), 'palette has 1 colours for 3 classes: give one to each'),
        (dict(channels=0), 'channels=0 must be an integer, at least 1'),
        (dict(color_type='rgb'), "color_type='rgb' must be one of color, grayscale, unchanged"),
        (dict(resize=(0, 5)), r'resize=\(0, 5\) must be \(width, height\) in pixels'),
        (dict(threshold=True), 'threshold=True must be a finite number, or null'),
        (dict(threshold=0.3), 'threshold=0.3 is for a model with one logit and two classes, but 3'),
        (dict(source_sha256=None), 'source_sha256=None must be a text'),
    ],
)
def test_a_wrong_value_is_named(values, text):
    with pytest.raises(ValueError, match=text):
        ModelDescription(**dict(INFO, **values))


def test_every_field_is_checked():
    assert list(CHECKS) == [field.name for field in fields(ModelDescription)]
    assert set(COLOR_TYPES) == set(READING)


def test_a_wrong_file_is_named(tmp_path):
    path = described(tmp_path)
    file = description_path(path)
    right = json.loads(file.read_text())

    def read(text):
        file.write_text(text)
        return ModelDescription.read(path)

    assert read(json.dumps(dict(right, of_a_later_version=1))).classes == INFO['classes']
    with pytest.raises(ValueError, match=r'model\.bin\.json is not what .* \(it lacks mean, std\)'):
        read(json.dumps({k: v for k, v in right.items() if k not in ('mean', 'std')}))
    with pytest.raises(ValueError, match=r'\(it holds a list, not an object with fields\); export'):
        read('[]')
    with pytest.raises(ValueError, match=r"is not what .* \(size='big' must be"):
        read(json.dumps(dict(right, size='big')))
    with pytest.raises(ValueError, match=r'is not what .*Expecting value: line 1'):
        read('{"size":')


def test_an_onnx_file_holds_what_a_user_needs(tmp_path):
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    values = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], 'g', [values], [result]),
        opset_imports=[onnx.helper.make_opsetid('', 18)],
        ir_version=10,
    )
    onnx.save(model, str(tmp_path / 'm.onnx'))
    info = ModelDescription(**dict(INFO, classes=('ü', 'b', 'c')))
    write_metadata(tmp_path / 'm.onnx', info)
    write_metadata(tmp_path / 'm.onnx', info)  # again: each key once
    loaded = onnxruntime.InferenceSession(str(tmp_path / 'm.onnx')).get_modelmeta()
    found = {key: json.loads(text) for key, text in loaded.custom_metadata_map.items()}
    assert sorted(found) == sorted(KEYS)
    assert found['classes'] == ['ü', 'b', 'c']
    assert found['palette'] == [[0, 0, 255], [0, 255, 0], [200, 0, 0]]
    assert found['mean'] == list(INFO['mean'])
    assert found['source_sha256'] == '0' * 64
    assert len(onnx.load(str(tmp_path / 'm.onnx')).metadata_props) == len(KEYS)
