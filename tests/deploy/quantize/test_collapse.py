"""Channels rescaled by powers of two: the same network, which int8 ruins unless it is equalized."""

import pytest

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.reparam import EquivalenceError
from tests.deploy.quantize.collapse import write_networks

SIZE = (64, 128)


@pytest.fixture(scope='module')
def networks(segmentor, tmp_path_factory):
    cfg, _, checkpoint = segmentor
    return write_networks(cfg, checkpoint, tmp_path_factory.mktemp('networks'))


@pytest.mark.slow
def test_the_collapse_and_its_cure(networks, tmp_path):
    """In both runtimes that read the file, with weights per channel."""
    cfg, checkpoints = networks

    def exported(name, agreement, drop, equalize):
        int8 = Int8Options(
            images=6,
            check_images=3,
            agreement=agreement,
            miou_drop=drop,
            equalize=equalize,
        )
        out = tmp_path / f'{name}.onnx'
        return export(cfg, checkpoints[name], out, options=Options(SIZE, int8=int8)).converted

    before = exported('fused', 0, 100, False)
    lowest = min(result.agreement for result in before)
    with pytest.raises(EquivalenceError, match='int8 loses too much'):
        exported('rescaled', 0.75, 100, False)
    cured = exported('rescaled', 0, 100, True)
    assert lowest > 0.75
    for old, new in zip(before, cured, strict=True):
        assert new.agreement > old.agreement - 0.01
