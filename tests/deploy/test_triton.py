"""Model repositories of Triton: their files, and the configuration against Triton's own schema."""

import importlib.util
import json
from pathlib import Path

import pytest

from mmseg_repvgg.deploy import triton
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.triton import check_repository, configuration, write_repository
from tests.deploy.networks import INFO


def made(folder, name='b 2.onnx', **info):
    """A file that is no model, with a description."""
    path = folder / name
    path.write_bytes(b'no model')
    ModelDescription(**{**INFO, **info}).write(path)
    return path


def parsed(text):
    """By the protobuf classes of Triton's client, without its other requirements."""
    text_format = pytest.importorskip('google.protobuf.text_format')
    spec = importlib.util.find_spec('tritonclient')
    if spec is None:
        pytest.skip('tritonclient is not installed')
    file = Path(spec.submodule_search_locations[0]) / 'grpc' / 'model_config_pb2.py'
    spec = importlib.util.spec_from_file_location('model_config_pb2', file)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return schema, text_format.Parse(text, schema.ModelConfig())


FIXED = """\
name: "b2"
backend: "onnxruntime"
max_batch_size: 0
input [
  {
    name: "images"
    data_type: TYPE_FP32
    dims: [ 1, 3, 8, 12 ]
  }
]
output [
  {
    name: "logits"
    data_type: TYPE_FP32
    dims: [ 1, 3, 8, 12 ]
    label_filename: "labels.txt"
  }
]
"""


def test_a_configuration_by_hand():
    assert configuration(ModelDescription(**dict(INFO, dynamic_batch=False)), 'b2') == FIXED


@pytest.mark.parametrize('dynamic', [False, True])
def test_a_configuration_fits_tritons_schema(dynamic):
    info = ModelDescription(
        **dict(INFO, format='openvino', argmax_inside=True, dynamic_batch=True),
        dynamic_size=dynamic,
    )
    schema, config = parsed(configuration(info, 'my "model"'))
    assert (config.name, config.backend, config.max_batch_size) == ('my "model"', 'openvino', 8)
    (image,), (labels,) = config.input, config.output
    sides = [-1, -1] if dynamic else [8, 12]
    assert (image.name, image.data_type, list(image.dims)) == (
        *('images', schema.DataType.Value('TYPE_FP32')),
        [3, *sides],
    )
    assert (labels.name, labels.data_type, list(labels.dims)) == (
        *('labels', schema.DataType.Value('TYPE_INT32')),
        sides,
    )
    assert labels.label_filename == 'labels.txt'
    assert config.HasField('dynamic_batching')


def test_the_schema_would_find_a_wrong_field():
    """Negative control."""
    text_format = pytest.importorskip('google.protobuf.text_format')
    with pytest.raises(text_format.ParseError):
        parsed(FIXED.replace('max_batch_size', 'largest_batch'))
    with pytest.raises(text_format.ParseError):
        parsed(FIXED.replace('TYPE_FP32', 'TYPE_FLOAT'))


def test_the_files(tmp_path):
    path = made(tmp_path, classes=('a\nb', 'ü', 'c'))
    folder = write_repository(path, tmp_path / 'models')
    assert folder == tmp_path / 'models' / 'b 2'
    found = sorted(f.relative_to(folder).as_posix() for f in folder.rglob('*') if f.is_file())
    assert found == ['1/model.onnx', 'config.pbtxt', 'description.json', 'labels.txt']
    assert (folder / '1' / 'model.onnx').read_bytes() == b'no model'
    assert (folder / 'labels.txt').read_text('utf-8') == 'a b\nü\nc\n'
    assert json.loads((folder / 'description.json').read_text())['classes'] == ['a\nb', 'ü', 'c']
    assert sorted(f.name for f in folder.parent.iterdir()) == ['b 2']
    with pytest.raises(ValueError, match='b 2 exists: remove it, or give another folder'):
        write_repository(path, tmp_path / 'models')


def test_weights_in_files_of_their_own(tmp_path):
    (tmp_path / 'b.bin').write_bytes(b'weights')
    folder = write_repository(made(tmp_path, 'b.xml', format='openvino'), tmp_path / 'models')
    assert sorted(f.name for f in (folder / '1').iterdir()) == ['model.bin', 'model.xml']
    (tmp_path / 'c.onnx.data').write_bytes(b'weights')
    folder = write_repository(made(tmp_path, 'c.onnx'), tmp_path / 'models')
    assert sorted(f.name for f in (folder / '1').iterdir()) == ['c.onnx.data', 'model.onnx']


def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch):
    path = made(tmp_path)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(triton, 'configuration', full)
    with pytest.raises(OSError, match='No space left'):
        write_repository(path, tmp_path / 'models')
    assert not list((tmp_path / 'models').iterdir())


def test_formats_without_a_backend_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'m.mnn' cannot go into .* for \.onnx and \.xml"):
        check_repository('m.mnn', tmp_path)
