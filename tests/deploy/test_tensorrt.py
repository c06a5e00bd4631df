"""Which ONNX files the check for TensorRT lets pass."""

import re
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mmseg_repvgg.deploy.tensorrt import check_tensorrt


def save(path, nodes, opset=18, domain='', initializers=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in 'xy']
    graph = helper.make_graph(nodes, 'g', values[:1], values[1:], initializer=initializers)
    opsets = [helper.make_opsetid(domain, opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), str(path))
    return path


def resize(**attributes):
    return helper.make_node('Resize', ['x', '', 'scales'], ['y'], **attributes)


@pytest.mark.parametrize(
    'node',
    [
        helper.make_node('Relu', ['x'], ['y']),
        resize(mode='linear', coordinate_transformation_mode='align_corners'),
        resize(mode='linear', coordinate_transformation_mode='half_pixel'),
        resize(),
        helper.make_node('Pad', ['x', 'pads', '', 'axes'], ['y']),
    ],
)
def test_what_tensorrt_supports_passes(tmp_path, node):
    axes = helper.make_tensor('axes', TensorProto.INT64, [1], [2])
    check_tensorrt(save(tmp_path / 'm.onnx', [node], initializers=[axes]))


@pytest.mark.parametrize(
    ('node', 'text'),
    [
        (helper.make_node('Col2Im', ['x', 'a', 'b'], ['y']), 'support Col2Im of'),
        (helper.make_node('DFT', ['x'], ['y']), 'DFT'),
        (resize(mode='cubic'), 'Resize with mode=cubic'),
        (
            resize(coordinate_transformation_mode='tf_crop_and_resize'),
            'Resize with coordinate_transformation_mode=tf_crop_and_resize',
        ),
        (resize(mode='linear', antialias=1), 'Resize with antialias'),
        (helper.make_node('Pad', ['x', 'pads', '', 'x'], ['y']), 'Pad with computed axes'),
    ],
)
def test_what_it_does_not_support_is_named(tmp_path, node, text):
    with pytest.raises(ValueError, match=f'TensorRT does not support .*{text}|{text}'):
        check_tensorrt(save(tmp_path / 'm.onnx', [node]))


def test_opsets_and_other_domains_are_named(tmp_path):
    relu = [helper.make_node('Relu', ['x'], ['y'])]
    with pytest.raises(ValueError, match='opset 21'):
        check_tensorrt(save(tmp_path / 'm.onnx', relu, opset=21))
    with pytest.raises(ValueError, match='operators of com.microsoft'):
        check_tensorrt(save(tmp_path / 'm.onnx', relu, opset=1, domain='com.microsoft'))


def test_the_documented_commands_have_no_option_that_tensorrt_11_lacks():
    text = (Path(__file__).parents[2] / 'docs' / 'deploy.md').read_text()
    commands = re.findall(r'^trtexec .*(?:\\\n.*)*', text, re.MULTILINE)
    assert len(commands) == 3
    assert not [command for command in commands if '--fp16' in command]
    assert 'half precision in TensorRT 10: --fp16. TensorRT 11 takes every type from the f' in text
