"""Files in float16: half the size, nearly the same logits, and checked before they are written."""

import numpy as np
import onnx
import pytest

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.reparam import EquivalenceError

SIZE = (49, 70)


def written(report) -> int:
    """Bytes of the weights and the graph."""
    return sum(
        path.stat().st_size
        for path in (report.path, report.path.with_suffix('.bin'))
        if path.is_file()
    )


@pytest.mark.slow
@pytest.mark.parametrize('model_format', ['onnx', 'mnn', 'openvino'])
def test_half_the_size_and_nearly_the_same(segmentor, tmp_path, model_format):
    cfg, _, checkpoint = segmentor
    out = {fp16: tmp_path / f'{fp16}{FORMATS[model_format]}' for fp16 in (False, True)}
    full, half = (
        export(cfg, checkpoint, out[fp16], options=Options(SIZE, fp16=fp16)) for fp16 in out
    )
    assert (full.info.precision, half.info.precision) == ('fp32', 'fp16')
    assert ModelDescription.read(half.path) == half.info
    assert written(half) < 0.75 * written(full)  # the graph of this tiny network is large
    assert all(0 < match.relative < 3e-2 for match in half.converted)
    assert f'wrote {half.path} in fp16' in str(half)
    images = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    for runtime in {match.runtime for match in half.converted}:
        expected, found = (load_runtime(r.path, runtime)(images) for r in (full, half))
        assert found.dtype == np.float32
        assert 1e-6 < np.abs(found - expected).max() / np.abs(expected).max() < 3e-2
    if model_format == 'onnx':
        graph = onnx.load(str(half.path)).graph
        kinds = {t.data_type for t in graph.initializer if 'branch_reparam' in t.name}
        assert kinds == {onnx.TensorProto.FLOAT16}
    files = {path.name for path in tmp_path.iterdir()}
    assert len(files) == (6 if model_format == 'openvino' else 4), files


def test_what_float16_cannot_hold_is_refused(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    with pytest.raises(
        EquivalenceError, match='not equal to PyTorch: .* may differ by at most 1e-0'
    ):
        export(
            cfg, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE, fp16=True, tolerance=1e-6)
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match='fp16 is not written as torch: give an OUT that ends in'):
        export(cfg, checkpoint, tmp_path / 'm.pt2', options=Options(SIZE, fp16=True))
