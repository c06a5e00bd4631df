"""mmcv.ops imports where mmcv has no compiled operators, and other libraries fall back as ever."""

import importlib
import importlib.util
import inspect
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from mmseg_repvgg.mmcv_stub import MissingOperatorError

is_compiled = importlib.util.find_spec('mmcv._ext') is not None
without_compiled = pytest.mark.skipif(is_compiled, reason='this mmcv has its operators')
BOX, SCORE = torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1)


def run(code):
    """Run Python code in a process of its own; return what it prints last, read as JSON."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@without_compiled
def test_everything_imports_only_with_the_package():
    code = """
import importlib, json
try:
    import mmcv.ops
    missing = None
except ModuleNotFoundError as error:  # control
    missing = error.name
import mmseg_repvgg
for name in ('mmcv.ops', 'mmseg.utils', 'mmseg.models', 'mmseg.apis', 'mmpretrain.models'):
    importlib.import_module(name)
print(json.dumps(missing))
"""
    assert run(code) == 'mmcv._ext'


def test_a_compiled_extension_is_preferred_and_its_faults_are_shown(tmp_path):
    """With an mmcv made up for it."""
    package = tmp_path / 'mmcv'
    (package / 'utils').mkdir(parents=True)
    for file in (package / '__init__.py', package / 'utils' / '__init__.py'):
        file.touch()
    (package / 'utils' / 'ext_loader.py').write_text(
        'import importlib\n'
        'def load_ext(name, funcs):\n'
        "    return importlib.import_module('mmcv.' + name)\n"
    )
    code = f"""
import importlib, json, pathlib, sys
sys.path.insert(0, {str(tmp_path)!r})
import mmseg_repvgg
from mmcv.utils import ext_loader
found = [type(ext_loader.load_ext('_ext', ['nms'])).__name__]
for text in ('nms = 3', 'import no_such_module', 'raise ImportError("undefined symbol")'):
    pathlib.Path({str(package)!r}, '_ext.py').write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop('mmcv._ext', None)
    try:
        found.append(ext_loader.load_ext('_ext', ['nms']).nms)
    except ImportError as error:
        found.append(str(error))
print(json.dumps(found))
"""
    expected = ['SimpleNamespace', 3, "No module named 'no_such_module'", 'undefined symbol']
    assert run(code) == expected


@without_compiled
def test_operators_raise_when_called():
    from mmcv.ops import nms

    with pytest.raises(MissingOperatorError, match=r'nms is a compiled operator.*full mmcv'):
        nms(BOX, SCORE, 0.5)
    assert issubclass(MissingOperatorError, NotImplementedError)


def nms_of_a_library():
    """As libraries write it that work with and without mmcv's operators."""
    try:
        from mmcv.ops import nms

        return nms(BOX, SCORE, 0.5)[1].tolist()
    except ImportError:
        from torchvision.ops import nms

        return nms(BOX, SCORE, 0.5).tolist()


@without_compiled
def test_libraries_fall_back():
    assert nms_of_a_library() == [0]


@without_compiled
def test_what_asks_for_the_operators_is_told_that_there_are_none():
    import mmcv.ops  # noqa: F401
    from mmcv.utils import ext_loader
    from mmengine.utils.dl_utils import mmcv_full_available

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('mmcv._ext')
    assert importlib.util.find_spec('mmcv._ext') is None
    if sys.version_info < (3, 14):  # both may call pkgutil.find_loader
        assert not ext_loader.check_ops_exist()
        assert not mmcv_full_available()


@without_compiled
def test_pure_parts_of_mmcv_ops_work():
    from mmcv.ops import point_sample

    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    points = torch.tensor([[[0.5, 0.5], [0.125, 0.5], [0.75, 1 / 3]]])  # x, y as fractions
    # Pixel centres are at (x + 0.5) / 4 and (y + 0.5) / 3, so these points are at the pixels
    # (1.5, 1), (0, 1) and (2.5, 0.5), of value 4 y + x.
    torch.testing.assert_close(point_sample(image, points), torch.tensor([[[5.5, 4.0, 4.5]]]))
    expected = functional.grid_sample(image, 2 * points[:, None] - 1, align_corners=False)
    torch.testing.assert_close(point_sample(image, points), expected[:, :, 0])


@without_compiled
def test_mmcv_reports_its_environment():
    """Its collect_env calls two functions of the extension whenever mmcv.ops imports."""
    from mmcv.utils import collect_env

    environment = collect_env()
    assert environment['MMCV Compiler'] == environment['MMCV CUDA Compiler'] == 'n/a'


@without_compiled
def test_tools_that_walk_over_modules_go_on():
    from mmcv.ops import nms

    assert pickle.whichmodule(nms_of_a_library, 'nms_of_a_library') == __name__
    inspect.getmodule(compile('', 'nowhere', 'exec'))
    operators = sys.modules['mmcv.ops.nms'].ext_module
    assert inspect.unwrap(operators.nms) is operators.nms
    assert not hasattr(operators, '__wrapped__')
    assert pickle.loads(pickle.dumps(nms)) is nms
    compiled_sum = torch.compile(lambda x: x + 1, backend='eager')
    assert compiled_sum(torch.ones(1)) == 2


@pytest.mark.parametrize('method', ['spawn', pytest.param('forkserver', marks=pytest.mark.slow)])
def test_workers_that_start_empty_read_data_sets_of_mmseg(tmp_path, method):
    """As in mmseg's own tools with custom_imports: nothing in the data set is ours."""
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    script = tmp_path / 'script.py'
    script.write_text(f"""
import json

def label_of(batch):
    return int(batch[0]['gt_seg_map'].max())

if __name__ == '__main__':
    import cv2, numpy, torch
    import mmseg_repvgg
    from mmseg.datasets import BaseSegDataset
    for i in range(2):
        cv2.imwrite(f'images/{{i}}.png', numpy.full((8, 8, 3), i, numpy.uint8))
        cv2.imwrite(f'labels/{{i}}.png', numpy.full((8, 8), i, numpy.uint8))
    dataset = BaseSegDataset(
        metainfo=dict(classes=('a', 'b')), data_root='.', img_suffix='.png', seg_map_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')])
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=1, num_workers=1, collate_fn=label_of,
        multiprocessing_context={method!r})
    print(json.dumps(list(loader)))
""")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 1]
