"""What the ONNX quantizer writes, on a network of two convs whose ranges are known."""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.quantize.onnx_qdq import quantize_onnx
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.runtimes import onnxruntime as onnxruntime_runtime
from mmseg_repvgg.deploy.tensorrt import check_tensorrt
from tests.deploy.networks import INFO

SIZE = (16, 16)


def write_network(path, first, second):
    """images -> conv of weight ``first`` -> ReLU -> 1x1 conv of weight ``second`` -> logits."""
    pads = [first.shape[2] // 2] * 4
    nodes = [
        helper.make_node('Conv', ['images', 'first'], ['a'], pads=pads),
        helper.make_node('Relu', ['a'], ['b']),
        helper.make_node('Conv', ['b', 'second'], ['logits']),
    ]
    channels = dict(images=first.shape[1], logits=len(second))
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, *SIZE])
        for name, count in channels.items()
    }
    weights = [numpy_helper.from_array(first, 'first'), numpy_helper.from_array(second, 'second')]
    graph = helper.make_graph(nodes, 'graph', [values['images']], [values['logits']], weights)
    opset = helper.make_opsetid('', 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))


def networks(seed=0, outputs=8, kernel=1):
    draw = np.random.default_rng(seed)
    first = draw.uniform(-1, 1, (outputs, 3, kernel, kernel)).astype(np.float32)
    return first, draw.uniform(-1, 1, (4, outputs, 1, 1)).astype(np.float32)


def images(low=-1.0, high=3.0, count=3):
    """Images that reach ``low`` and ``high`` in one pixel each."""
    draw = np.random.default_rng(1)
    made = draw.uniform(0.5 * low, 0.5 * high, (count, 1, 3, *SIZE)).astype(np.float32)
    made[0, 0, 0, 0, 0], made[-1, 0, 1, 2, 3] = low, high
    return list(made)


def quantized(tmp_path, first, second, inputs, in_float=(), **options):
    write_network(tmp_path / 'm.onnx', first, second)
    quantize_onnx(
        tmp_path / 'm.onnx', tmp_path / 'q.onnx', inputs, Int8Options(**options), in_float
    )
    model = onnx.load(str(tmp_path / 'q.onnx'))
    return model, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def run(path, image, plain=False):
    """In ONNX Runtime: as this package runs it, or in a session without its settings."""
    if plain:
        return onnxruntime.InferenceSession(str(path)).run(None, {'images': image})[0]
    ModelDescription(
        **INFO
        | dict(
            size=SIZE,
            channels=image.shape[1],
            mean=(0.0,) * image.shape[1],
            std=(1.0,) * image.shape[1],
        )
    ).write(path)
    return load_runtime(path, 'onnxruntime')(image)


@pytest.mark.parametrize(('bits', 'steps'), [(7, 64), (8, 127)])
def test_weights_per_channel_by_hand(tmp_path, bits, steps):
    first, second = networks()
    _, values = quantized(tmp_path, first, second, images(), weight_bits=bits)
    scale = np.abs(first).max(axis=(1, 2, 3)) / steps
    assert values['first_scale'] == pytest.approx(scale, rel=1e-6)
    whole = np.round(first / scale[:, None, None, None])
    assert np.abs(values['first_quantized'] - whole).max() <= 1  # ties
    assert (values['first_quantized'] == whole).mean() > 0.9
    assert np.abs(values['first_quantized'].astype(int)).max() == steps


def test_weights_per_tensor_by_hand(tmp_path):
    first, second = networks()
    _, values = quantized(tmp_path, first, second, images(), per_tensor=True, weight_bits=8)
    assert values['first_scale'] == pytest.approx(np.abs(first).max() / 127, rel=1e-6)


def test_ranges_of_maps_by_hand(tmp_path):
    """From -1 to 3 in 255 steps, so that 0 is step 255 / 4, rounded."""
    _, values = quantized(tmp_path, *networks(), images(-1, 3))
    assert values['images_scale'] == pytest.approx(4 / 255, rel=1e-6)
    assert values['images_zero_point'] == 64
    assert values['b_zero_point'] == 0  # all 256 steps for what ReLU leaves


def test_the_percentile_cuts_an_outlier_off(tmp_path):
    inputs = images(-1, 3, count=300)  # 230400 values; one is 0.0004 %, less than is cut off
    inputs[5][0, 1, 4, 4] = 20
    scales = {}
    for calibrator, count in (('min-max', 300), ('percentile', 300), ('entropy', 8)):
        _, values = quantized(tmp_path, *networks(), inputs[:count], calibrator=calibrator)
        scales[calibrator] = float(values['images_scale'])
    assert scales['min-max'] == pytest.approx(21 / 255, rel=1e-5)
    assert scales['percentile'] < 5 / 255
    assert scales['entropy'] < 10 / 255


def test_convs_run_in_int8(tmp_path):
    first, second = networks()
    quantized(tmp_path, first, second, images())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / 'q.onnx'), options)
    nodes = onnx.load(str(tmp_path / 'optimized.onnx')).graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count('QLinearConv') == 2
    assert 'Conv' not in kinds and 'Relu' not in kinds


def test_chosen_convs_stay_in_float(tmp_path):
    first, second = networks()
    _, values = quantized(tmp_path, first, second, images(), in_float=[second])
    assert np.array_equal(values['second'], second)
    assert 'first_quantized' in values and 'second_quantized' not in values


def test_a_conv_that_is_not_found_is_not_quantized_in_silence(tmp_path):
    first, second = networks()
    with pytest.raises(ValueError, match='1 of 2 layers that stay in float are not in the'):
        quantized(tmp_path, first, second, images(), in_float=[first, 2 * second])


def test_what_tensorrt_reads(tmp_path):
    first, second = networks()
    model, values = quantized(tmp_path, first, second, images(), symmetric=True)
    assert not any(value.any() for name, value in values.items() if name.endswith('zero_point'))
    assert values['images_scale'] == pytest.approx(3 / 127, rel=1e-6)
    assert [n.op_type for n in model.graph.node if n.op_type not in ('Conv', 'Relu')] == [
        kind for kind in [n.op_type for n in model.graph.node] if 'Linear' in kind
    ]
    # the maps between a conv and its ReLU are not rounded
    assert {n.input[0] for n in model.graph.node if n.op_type == 'Relu'} == {'a'}
    check_tensorrt(tmp_path / 'q.onnx')
    quantized(tmp_path, first, second, images())
    with pytest.raises(ValueError, match='QuantizeLinear with a zero point'):
        check_tensorrt(tmp_path / 'q.onnx')


def has_vnni() -> bool:
    """Whether this CPU adds products of 8 bits in 32 bits; True where that is not known."""
    known = Path('/proc/cpuinfo')
    flags = known.read_text() if platform.machine() == 'x86_64' and known.is_file() else 'vnni'
    return 'vnni' in flags


@pytest.mark.parametrize(
    ('machine', 'flags', 'expected'),
    [
        ('x86_64', 'avx2 avx512f', True),
        ('x86_64', 'avx2 avx512f avx512_vnni', False),
        ('x86_64', 'avx2 avx_vnni', False),
        ('x86_64', None, True),
        ('AMD64', None, True),  # Windows
        ('aarch64', 'asimd', False),
    ],
)
def test_the_slow_kernel_runs_where_sums_may_saturate(
    tmp_path, monkeypatch, machine, flags, expected
):
    if flags is not None:
        (tmp_path / 'cpuinfo').write_text(f'flags\t\t: {flags}\n')
    monkeypatch.setattr(onnxruntime_runtime, 'CPU_INFO', tmp_path / 'cpuinfo')
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    assert onnxruntime_runtime.may_saturate() == expected


@pytest.mark.parametrize('symmetric', [False, True])
def test_sums_do_not_saturate(tmp_path, symmetric):
    """Weights and maps that are all near their largest: 16-bit sums of pairs would overflow."""
    draw = np.random.default_rng(0)
    first = draw.uniform(0.5, 1, (32, 64, 3, 3)).astype(np.float32)
    second = draw.uniform(-1, 1, (4, 32, 1, 1)).astype(np.float32)
    inputs = list(draw.uniform(0.5, 1, (2, 1, 64, *SIZE)).astype(np.float32))
    inputs[0][..., 0, 0] = 0
    write_network(tmp_path / 'm.onnx', first, second)
    expected = run(tmp_path / 'm.onnx', inputs[0], plain=True)

    def error(bits, plain):
        quantized(tmp_path, first, second, inputs, weight_bits=bits, symmetric=symmetric)
        return (
            np.abs(run(tmp_path / 'q.onnx', inputs[0], plain) - expected).max()
            / np.abs(expected).max()
        )

    assert error(8, plain=False) < 0.02  # as this package runs it
    assert error(7, plain=True) < 0.02  # in any program
    if not has_vnni() and not symmetric:  # negative control: 8 bits in another program
        assert error(8, plain=True) > 0.1
