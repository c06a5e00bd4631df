"""OpenVINO files in int8, by NNCF."""

import numpy as np
import pytest

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.quantize import openvino_nncf
from mmseg_repvgg.deploy.quantize.openvino_nncf import quantize_openvino
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.deploy.runtimes import load_runtime
from tests.deploy.quantize.costs import uncorrected

pytest.importorskip('nncf')

SIZE = (64, 128)
LOOSE = dict(images=3, check_images=3, agreement=0, miou_drop=100)  # random features


@pytest.mark.slow
def test_weights_are_int8(segmentor, tmp_path):
    import openvino

    cfg, _, checkpoint = segmentor
    options = Options(SIZE, int8=Int8Options(**LOOSE))
    report = export(cfg, checkpoint, tmp_path / 'm.xml', options=options)
    assert {path.name for path in tmp_path.iterdir()} == {'m.xml', 'm.bin', 'm.xml.json'}
    assert report.info.quantization['library'].startswith('nncf ')
    (result,) = report.converted
    assert result.runtime == 'openvino' and 0.2 < result.agreement < 1
    graph = openvino.Core().read_model(str(report.path))
    weights = {
        op.get_friendly_name(): op.get_element_type().to_string()
        for op in graph.get_ops()
        if op.get_type_name() == 'Constant'
        and len(op.get_output_shape(0)) == 4
        and np.prod(op.get_output_shape(0)) > 64
    }
    kinds = list(weights.values())
    assert kinds.count('i8') >= 15
    stay = [name for name in weights if 'conv_seg' in name]
    assert all(weights[name] == 'f32' for name in stay)
    images = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    assert np.isfinite(load_runtime(report.path)(images)).all()


@pytest.mark.slow
@pytest.mark.parametrize('in_float', [openvino_nncf.IN_FLOAT, ()], ids=['default', 'control'])
def test_logits_are_resized_in_float(segmentor, tmp_path, monkeypatch, in_float):
    import openvino

    cfg, _, checkpoint = segmentor
    monkeypatch.setattr(openvino_nncf, 'IN_FLOAT', in_float)
    options = Options(SIZE, int8=Int8Options(**LOOSE))
    report = export(cfg, checkpoint, tmp_path / 'm.xml', options=options)
    node = openvino.Core().read_model(str(report.path)).get_results()[0]
    while node.get_type_name() != 'Interpolate':
        node = node.input_value(0).get_node()
    resized = node.input_value(0).get_node().get_type_name()
    assert (resized == 'FakeQuantize') == (in_float == ())


@pytest.mark.slow
def test_biases_are_corrected(segmentor, tmp_path):
    """Rounding of weights shifts the mean of a channel; the bias takes it back (Nagel 4.2)."""
    import openvino

    cfg, _, checkpoint = segmentor
    source = export(cfg, checkpoint, tmp_path / 'm.xml', options=Options(SIZE)).path
    images = np.random.default_rng(0).normal(size=(8, 1, 3, *SIZE)).astype(np.float32)
    options = Int8Options(weight_bits=7, per_tensor=True)
    quantize_openvino(source, tmp_path / 'corrected.xml', images, options)
    with uncorrected():
        quantize_openvino(source, tmp_path / 'uncorrected.xml', images, options)

    def biases(path):
        graph = openvino.Core().read_model(str(path))
        adds = [op for op in graph.get_ops() if op.get_type_name() == 'Add']
        nodes = {op.get_friendly_name(): op.input_value(1).get_node() for op in adds}
        return {name: node.data for name, node in nodes.items() if hasattr(node, 'data')}

    def mean_logits(path):
        run = openvino.Core().compile_model(str(path), 'CPU')
        return np.concatenate([run(image)[0] for image in images]).mean((0, 2, 3))

    def changed(path):
        found = biases(path)
        return sum(not np.array_equal(bias, found[name]) for name, bias in float32.items())

    float32 = biases(source)
    assert changed(tmp_path / 'corrected.xml') > 4
    assert changed(tmp_path / 'uncorrected.xml') == 0
    shifts = [
        np.abs(mean_logits(tmp_path / name) - mean_logits(source)).mean()
        for name in ('corrected.xml', 'uncorrected.xml')
    ]
    assert shifts[0] < shifts[1]


def test_nncf_is_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_repvgg.deploy.quantize.openvino_nncf.find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs nncf: pip install 'mmseg-repvgg\[int8\]'"):
        quantize_openvino(tmp_path / 'm.xml', tmp_path / 'q.xml', [], Int8Options())
