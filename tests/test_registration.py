"""Everything is registered whatever is imported first, and nothing heavy is without mmengine."""

import json
import os
import subprocess
import sys

REPORT = """
import json, sys
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import CheckpointLoader
from mmseg_repvgg.registration import AfterImport
print(json.dumps([
    'DilatedRepVGG' in MODELS.module_dict,
    'DeployedModel' in MODELS.module_dict,
    'RepVGGDeployHook' in HOOKS.module_dict,
    CheckpointLoader._schemes[''].__module__,
    sum(type(finder) is AfterImport for finder in sys.meta_path),
]))
"""
REGISTERED = [True, True, True, 'mmseg_repvgg.checkpoint.mmengine_loader', 1]


def run(code, *options):
    """Run Python code in a process of its own; return the lines it prints, each read as JSON."""
    done = subprocess.run(
        [sys.executable, *options, '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


ORDERS = {
    'ours, then mmseg': 'import mmseg_repvgg; import mmseg',
    'ours, then mmcv': 'import mmseg_repvgg; import mmcv',  # imports mmengine in its middle
    'ours, then all of mmpretrain, which needs mmcv._ext': 'import mmseg_repvgg; import mmpretrain',
    'mmseg, then ours': 'import mmseg; import mmseg_repvgg',
    'mmengine, then ours': 'import mmengine; import mmseg_repvgg',
    'a module of ours that imports mm packages': 'from mmseg_repvgg.models import DilatedRepVGG',
    'one that its package does not import': 'import mmseg_repvgg.checkpoint.loading, mmengine',
    'one that needs what is registered': 'from mmseg_repvgg.deploy import fuse',
    'a subpackage as an attribute': 'import mmseg_repvgg; mmseg_repvgg.engine.RepVGGDeployHook',
    'one that fails after mmengine': """
import sys
sys.modules['mmseg_repvgg.engine.launch'] = None
try:
    import mmseg_repvgg.demo
except ImportError:
    assert 'mmengine' in sys.modules
else:
    raise AssertionError('it should have failed')
""",
    'in a thread': """
import importlib, threading, mmseg_repvgg
thread = threading.Thread(target=importlib.import_module, args=['mmseg'])
thread.start()
thread.join()
""",
    'after a look': 'import mmseg_repvgg; from importlib.util import *; find_spec("mmengine")',
    'after a failure': """
import sys, mmseg_repvgg
sys.modules['mmengine.utils'] = None
try:
    import mmengine
except ImportError:
    del sys.modules['mmengine.utils']
""",
}


def test_every_order_of_imports_registers():
    """Each order in a fork of one process, so that PyTorch is imported only once."""
    code = f"""
import json, os, sys
import cv2, torch, torchvision
assert not {{'mmengine', 'mmcv', 'mmseg_repvgg'}} & set(sys.modules)
for order, code in {ORDERS!r}.items():
    child = os.fork()
    if not child:
        exec(code + {REPORT!r}, {{}})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""
    found = run(code, '-W', 'error::RuntimeWarning')
    assert dict(zip(ORDERS, found, strict=True)) == dict.fromkeys(ORDERS, REGISTERED)


def test_registers_once(tmp_path):
    """With packages made up for it: how often register() is called, and when."""
    (tmp_path / 'mmengine.py').write_text('complete = True')
    (tmp_path / 'mmcv.py').write_text('import mmengine')
    code = """
import json, sys
sys.path.insert(0, FOLDER)
from mmseg_repvgg import registration
calls = []
registration.register = lambda: calls.append(hasattr(sys.modules['mmengine'], 'complete'))
import mmcv
import mmengine, mmseg_repvgg.version
print(json.dumps(calls))
"""
    assert run(code.replace('FOLDER', repr(str(tmp_path)))) == [[True]]


def test_custom_imports_of_a_config(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        "custom_imports = dict(imports=['mmseg_repvgg'], allow_failed_imports=False)\n"
    )
    load = f'from mmengine.config import Config; Config.fromfile({str(config)!r})'
    assert run(load + REPORT) == [REGISTERED]


def test_workers(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text("""
import json, multiprocessing
import mmseg_repvgg
from mmengine.registry import MODELS

def parameters(arch):
    model = MODELS.build(dict(type='DilatedRepVGG', arch=arch))
    return len(list(model.parameters()))

if __name__ == '__main__':
    counts = [parameters('A0')]
    for method in ('fork', 'spawn'):
        with multiprocessing.get_context(method).Pool(1) as pool:
            counts += pool.map(parameters, ['A0'])
    print(json.dumps(counts))
""")
    (counts,) = run(f'import runpy; runpy.run_path({str(script)!r}, run_name="__main__")')
    assert counts == counts[:1] * 3
    assert counts[0] > 0


def test_without_mmcv_the_import_of_mmengine_goes_on_with_a_warning():
    code = """
import importlib, json, sys, warnings
sys.modules['mmcv'] = None
import mmseg_repvgg
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import mmengine
loader = type(mmengine.__spec__.loader).__name__
texts = [str(w.message) for w in caught if w.category is RuntimeWarning]
try:
    importlib.reload(mmseg_repvgg)
except ImportError as error:
    texts.append(str(error))
print(json.dumps([loader, hasattr(mmseg_repvgg, 'nothing'), *texts]))
"""
    ((loader, unknown, warning, error),) = run(code)
    assert (loader, unknown) == ('SourceFileLoader', False)
    assert warning.startswith('mmseg_repvgg has registered nothing with mmengine: ')
    assert 'mmcv' in warning
    assert 'mmcv' in error
    for text in (warning, error):
        assert text.endswith('. python -m mmseg_repvgg.doctor shows the fix')


def test_what_a_service_imports_is_light():
    code = """
import json, sys
import mmseg_repvgg
from mmseg_repvgg.deploy.segmenter import Segmenter
import mmseg_repvgg.deploy.predict
heavy = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'matplotlib')
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    assert run(code, '-W', 'error') == [[]]
