"""Loading exported models: which runtime is taken, and what is said when none fits."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmseg_repvgg.deploy import runtimes
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.runtimes import RUNTIMES, load_runtime
from mmseg_repvgg.deploy.runtimes.base import Runtime
from tests.deploy import networks
from tests.deploy.networks import described

INFO = ModelDescription(**{**networks.INFO, 'size': (4, 6), 'dynamic_batch': False})


class Counting(Runtime):
    """Gives its input back, and remembers the batches."""

    def load(self):
        """There is nothing to load."""

    def run(self, images):
        self.batches = [*getattr(self, 'batches', []), len(images)]
        return images


@pytest.mark.parametrize(('dynamic', 'batches'), [(False, [1, 1, 1]), (True, [3])])
def test_any_batch_is_taken(dynamic, batches):
    loaded = Counting(None, replace(INFO, dynamic_batch=dynamic), None)
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 6), dtype=np.float32)
    assert (loaded(images) == images).all()
    assert (loaded(images[..., ::-1]) == images[..., ::-1]).all()  # not contiguous
    assert loaded.batches == 2 * batches


@pytest.mark.parametrize('shape', [(3, 4, 6), (1, 3, 6, 4), (1, 1, 4, 6), (0, 3, 4, 6)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r'do not fit m.onnx, which takes \(N, 3, 4, 6\)'):
        Counting('m.onnx', INFO, None)(np.zeros(shape, np.float32))


@pytest.mark.parametrize('dtype', ['uint8', 'float64', 'float16'])
def test_a_wrong_dtype_is_named(dtype):
    with pytest.raises(ValueError, match=f'images are {dtype}, but m.onnx takes float32'):
        Counting('m.onnx', INFO, None)(np.zeros((1, 3, 4, 6), dtype))


def test_a_wrong_choice_is_named(tmp_path, monkeypatch):
    path = described(tmp_path)
    with pytest.raises(ValueError, match="runtime='tensorflow' is not known; use one of onnxrunt"):
        load_runtime(path, 'tensorflow')
    with pytest.raises(ValueError, match='mnn cannot read .* use onnxruntime or openvino, or exp'):
        load_runtime(path, 'mnn')
    with pytest.raises(ValueError, match='threads=0 must be at least 1'):
        load_runtime(path, threads=0)
    with pytest.raises(FileNotFoundError, match='nowhere.onnx not found'):
        load_runtime(tmp_path / 'nowhere.onnx')
    with pytest.raises(ValueError, match="has the format 'caffe', unknown to this version"):
        load_runtime(described(tmp_path, format='caffe'))
    monkeypatch.setattr(runtimes, 'find_spec', lambda name: None)
    path = described(tmp_path, format='mnn')
    for runtime in (None, 'mnn'):
        with pytest.raises(RuntimeError, match=r"the package MNN, .* 'mmseg-repvgg\[deploy\]'"):
            load_runtime(path, runtime)


def test_the_first_installed_reader_is_the_default(tmp_path, monkeypatch):
    path = described(tmp_path)
    with pytest.raises(ValueError, match='onnxruntime cannot read'):
        load_runtime(path)
    monkeypatch.setattr(runtimes, 'is_installed', lambda name: name != 'onnxruntime')
    with pytest.raises(ValueError, match='openvino cannot read'):
        load_runtime(path)


@pytest.mark.parametrize('runtime', list(RUNTIMES))
def test_a_damaged_file_is_named(tmp_path, runtime):
    path = described(tmp_path, format=RUNTIMES[runtime].formats[0])
    with pytest.raises(ValueError, match=f'{runtime} cannot read {path}: .*export it again'):
        load_runtime(path, runtime)


@pytest.mark.parametrize(
    ('runtime', 'device', 'text'),
    [
        ('onnxruntime', 'tpu', "device='tpu' must be one of cpu, cuda"),
        ('mnn', 'cuda', "device='cuda': MNN is run on 'cpu' only"),
        ('openvino', 'cuda', "device='cuda': OpenVINO has .*cpu.* on this machine"),
        ('openvino', 'tpu.1', "device='tpu.1': OpenVINO has"),
        ('openvino', '', "device='': OpenVINO has"),
        ('torch', 'tpu', r"device='tpu': PyTorch \S+ has cpu.* on this machine"),
    ],
)
def test_a_device_that_a_runtime_lacks_is_named(tmp_path, runtime, device, text):
    pytest.importorskip(RUNTIMES[runtime].needs)
    path = described(tmp_path, format=RUNTIMES[runtime].formats[0])
    with pytest.raises(ValueError, match=text):
        load_runtime(path, runtime, device=device)


def test_cuda_without_cuda_is_refused(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    if 'CUDAExecutionProvider' in onnxruntime.get_available_providers():
        pytest.skip('this machine has it')
    with pytest.raises(ValueError, match='pip install onnxruntime-gpu'):
        load_runtime(described(tmp_path, format='onnx'), 'onnxruntime', device='cuda')


def test_torch_on_a_gpu_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('this machine has it')
    with pytest.raises(ValueError, match=r"^device='cuda': PyTorch \S+ has cpu"):
        load_runtime(described(tmp_path, format='torch'), device='cuda')


@pytest.mark.parametrize(
    'device',
    ['auto:cpu', *(pytest.param(d, marks=pytest.mark.slow) for d in ('CPU', 'hetero:cpu'))],
)
def test_openvinos_names_of_devices(segmentor, tmp_path, device):
    pytest.importorskip('openvino')
    cfg, _, checkpoint = segmentor
    path = export(cfg, checkpoint, tmp_path / 'm.xml', options=Options(size=(33, 40))).path
    images = np.ones((1, 3, 33, 40), np.float32)
    expected = load_runtime(path, 'openvino')(images)
    np.testing.assert_allclose(load_runtime(path, device=device)(images), expected, rtol=1e-4)


@pytest.mark.parametrize('runtime', list(RUNTIMES))
def test_an_option_that_a_runtime_lacks_is_named(tmp_path, runtime):
    pytest.importorskip(RUNTIMES[runtime].needs)
    path = described(tmp_path, format=RUNTIMES[runtime].formats[0])
    with pytest.raises(ValueError, match=f'^{runtime} has no option winograd; it has device'):
        load_runtime(path, runtime, winograd=1)


def test_mnns_option_is_checked(tmp_path):
    path = described(tmp_path, format='mnn')
    with pytest.raises(ValueError, match=r'winograd_level=7 must be one of \(0, 1, 2, 3\)'):
        load_runtime(path, winograd_level=7)


@pytest.mark.parametrize('providers', [['TvmExecutionProvider', 'CPUExecutionProvider'], []])
def test_a_provider_that_is_not_there_is_refused(tmp_path, providers):
    """ONNX Runtime itself takes the CPU then, and says so in its log only."""
    pytest.importorskip('onnxruntime')
    path = described(tmp_path, format='onnx')
    with pytest.raises(
        ValueError, match=r'ONNX Runtime has .*; for CUDA pip install onnxruntime-gpu'
    ):
        load_runtime(path, 'onnxruntime', providers=providers)


def test_the_modules_import_no_openmmlab_package_and_torch_only_for_torch():
    """Their source is looked at, for importing the package may register what it brings."""
    code = (
        'import sys, types; p = types.ModuleType("mmseg_repvgg"); p.__path__ = ["mmseg_repvgg"]; '
        'sys.modules["mmseg_repvgg"] = p; import mmseg_repvgg.deploy.runtimes as r; '
        'import mmseg_repvgg.deploy.tiling; '
        '[__import__(f"{r.__name__}.{n}") for n in ("onnxruntime", "openvino", "mnn")]; '
        'print(sorted({"torch", "mmengine", "mmcv", "mmseg", "cv2"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith('[]'), done.stdout + done.stderr
