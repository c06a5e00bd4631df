"""What this environment has, what works in it, and a command for each thing that does not.

``python -m mmseg_repvgg.doctor`` prints a line per check and exits with 1 if something that is
needed does not work. Everything is imported inside its check, because it may be missing or broken.
An environment with a runtime for exported models and nothing to train with is checked as that of a
service.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmseg_repvgg.package_versions import (
    MODULES,
    Problem,
    check_module,
    explain_missing,
    family_of,
    install_command,
    installed,
    parse,
)
from mmseg_repvgg.version import __version__

PYTHON, TORCH = '3.10', '2.6'
"""The lowest versions, as in setup.py."""
RUNTIMES = ('onnxruntime', 'openvino', 'MNN')
"""Modules that run exported models, by the name of their package."""
HEADLESS = 'pip uninstall -y opencv-python && pip install opencv-python-headless'
TINY = dict(num_blocks=(1, 2, 2, 1), width_factor=(0.125,) * 4)


@dataclass(frozen=True)
class Check:
    """Something to try.

    ``run`` returns what it found, and raises if something does not work. The command that fixes it
    is that of the :class:`Problem`, or ``command`` for other errors.
    """

    name: str
    run: Callable[[], str]
    command: str
    after: tuple[str, ...] = ()  # skipped if one of these does not work
    needed: bool = True


@dataclass(frozen=True)
class Result:
    """The result of a check."""

    check: Check
    state: str  # 'ok', 'FAIL', 'absent' (optional and not installed) or 'skipped'
    text: str
    command: str = ''

    @property
    def is_fatal(self) -> bool:
        """Whether something needed does not work."""
        return self.state == 'FAIL' and self.check.needed


class Absent(Problem):
    """Something optional is not installed."""


def check_python() -> str:
    """The interpreter is new enough."""
    if parse(platform.python_version()) < parse(PYTHON):
        text = f'Python {platform.python_version()} is too old; {PYTHON} or newer is needed'
        raise Problem(text, f'make setup PYTHON3=/path/to/python{PYTHON}   # or another newer one')
    return f'{platform.python_version()}, {sys.executable}'


def check_torch() -> str:
    """PyTorch is new enough."""
    import torch

    found = str(torch.__version__)
    if parse(found) < parse(TORCH):
        text = f'PyTorch {found} is too old; {TORCH} or newer is needed'
        raise Problem(text, f"pip install 'torch>={TORCH}' torchvision")
    return found


def check_import(module: str) -> str:
    """A module imports."""
    return str(import_module(module).__version__)


def check_mm(module: str, *parts: str) -> str:
    """A package of OpenMMLab is the right one, and imports with the parts that are used."""
    text = check_module(module, installed())
    for part in parts:
        import_module(part)
    if module == 'mmcv':
        is_lite = find_spec('mmcv._ext') is None
        text += ', lite: no compiled operators' if is_lite else ', full: with compiled operators'
    return text


def check_registration(scope: str) -> str:
    """DilatedRepVGG is built by its plain name."""
    import_module('mmseg_repvgg.models')
    import_module('mmseg_repvgg.engine')
    registry = import_module(f'{scope}.registry').MODELS
    registry.build(dict(type='DilatedRepVGG', arch=TINY))
    return f'DilatedRepVGG is built from the {scope} scope'


def check_fusing() -> str:
    """A small backbone has the same outputs after fusing."""
    import torch
    from torch.nn import BatchNorm2d

    from mmseg_repvgg.models import DilatedRepVGG
    from mmseg_repvgg.reparam.equivalence import compare, require_equal, tolerance_of
    from mmseg_repvgg.reparam.rewrites import deployed_copy

    model = DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):  # a fresh one (mean 0, variance 1) would hide mistakes
            for values in norm.state_dict().values():
                if values.is_floating_point():
                    values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    fused, _ = deployed_copy(model, ['branches', 'dilation'])
    found = compare(model, fused, torch.randn(1, 3, 65, 49, generator=generator))
    require_equal(found, tolerance_of(model), 'a small backbone')
    return f'a fused backbone is equal: {found}'


class _CallsFunction:
    """Calls a (harmless) function when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def check_reading() -> str:
    """Our reader reads training checkpoints and runs nothing in them."""
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import CheckpointLoader

    import_module('mmseg_repvgg.checkpoint.mmengine_loader').install()
    from mmseg_repvgg.checkpoint import UnsafeCheckpointError

    with tempfile.TemporaryDirectory() as folder:
        file, read = Path(folder) / 'x.pth', CheckpointLoader.load_checkpoint
        hub = dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])))
        torch.save(dict(state_dict=dict(a=torch.ones(1)), message_hub=hub), file)
        read(str(file), 'cpu', logger='silent')
        torch.save(dict(a=_CallsFunction()), file)
        try:
            read(str(file), 'cpu', logger='silent')
        except (UnsafeCheckpointError, pickle.UnpicklingError):
            return 'training checkpoints are read, and files that would run code are refused'
    raise RuntimeError("mmengine's loader ran what was in a file: our reader is not installed")


def check_runtime(package: str) -> str:
    """A runtime for exported models imports."""
    if find_spec(package) is None:
        raise Absent(f'{package} is not installed (optional)', f'pip install {package}')
    import_module(package)
    return version(package)


def check_segmenting() -> str:
    """A service segments an image: here with a network that finds bright pixels."""
    import numpy as np

    from mmseg_repvgg.deploy.model_description import ModelDescription
    from mmseg_repvgg.deploy.segmenter import Segmenter

    import_module('mmseg_repvgg.deploy.predict')

    class Bright:
        info = ModelDescription(
            *('onnx', (4, 6), False, True, False),
            *((0.0,) * 3, (1.0,) * 3, True, ('dark', 'bright'), ((0, 0, 0), (255, 255, 255))),
            *(None, (), '', __version__),
        )

        def __call__(self, images: np.ndarray) -> np.ndarray:
            bright = images.mean(1) - 127.5
            return np.stack([-bright, bright], 1)

    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 6:] = 255
    labels = Segmenter(Bright())(image)
    if not np.array_equal(labels, image[..., 0] // 255):
        raise RuntimeError(f'the labels of a half bright image are {labels.tolist()}')
    return 'an image is segmented'


def check_training() -> str:
    """Nothing to train with is installed, which a service does not need."""
    text = 'this is the environment of a service: PyTorch and mm packages are not installed'
    raise Absent(text, "pip install 'mmseg-repvgg[openmmlab]'   # or [onedl]")


def check_cuda() -> str:
    """PyTorch computes on the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.ones(2, device='cuda').sum().item()
        return f'{torch.version.cuda}, {torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    if torch.version.cuda is None and Path('/proc/driver/nvidia').exists():
        raise RuntimeError('there is an NVIDIA GPU, but this PyTorch is built without CUDA')
    built = f'PyTorch is built for {torch.version.cuda}' if torch.version.cuda else 'none'
    return f'{built}; no GPU is seen, everything runs on the CPU'


def _reinstall(*names: str) -> str:
    return f'pip install --force-reinstall {" ".join(names)}'


def _reinstall_package() -> str:
    """The command that reinstalls this package, from the checkout or from where pip got it."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / 'setup.py').is_file():
        return _reinstall('--no-deps', str(checkout))
    try:
        source = distribution('mmseg-repvgg').read_text('direct_url.json')
    except PackageNotFoundError:
        source = None
    return _reinstall('--no-deps', json.loads(source)['url'] if source else 'mmseg-repvgg')


def _mm_check(module: str, *after: str, parts: tuple[str, ...], needed: bool = True) -> Check:
    """The check of one of OpenMMLab's packages: the distribution, and that ``parts`` import."""
    given = installed()[module]
    again = _reinstall('--no-deps', *given)
    if not given or 'mmcv' in given:  # operators built for another PyTorch
        again = install_command(module, given, family_of(installed()))
    return Check(module, partial(check_mm, module, *parts), again, after, needed)


def _registration_check(scope: str, needed: bool = True) -> Check:
    run = partial(check_registration, scope)
    return Check(f'in {scope}', run, _reinstall_package(), ('mmengine', 'mmcv', scope), needed)


def is_service() -> bool:
    """Whether exported models can be run here, and nothing to train with is installed."""
    can_train = any(map(find_spec, ('torch', *MODULES)))
    return not can_train and any(map(find_spec, RUNTIMES))


def all_checks() -> tuple[Check, ...]:
    """The checks; each comes after those that it depends on."""
    return _service_checks() if is_service() else _training_checks()


def _runtime_checks() -> list[Check]:
    return [
        Check(m.lower(), partial(check_runtime, m), _reinstall(m), needed=False) for m in RUNTIMES
    ]


def _service_checks() -> tuple[Check, ...]:
    return (
        Check('python', check_python, ''),
        Check('numpy', partial(check_import, 'numpy'), _reinstall('numpy')),
        Check('opencv', partial(check_import, 'cv2'), HEADLESS, ('numpy',)),
        Check('segmenting', check_segmenting, _reinstall_package(), ('numpy', 'opencv')),
        *_runtime_checks(),
        Check('training', check_training, '', needed=False),
    )


def _training_checks() -> tuple[Check, ...]:
    torch, base, mm = ('torch',), ('torch', 'numpy', 'opencv'), ('mmengine', 'mmcv')
    pair = _reinstall(f"'torch>={TORCH}'", 'torchvision')
    return (
        Check('python', check_python, ''),
        Check('torch', check_torch, pair),
        Check('torchvision', partial(check_import, 'torchvision'), pair, torch),
        Check('numpy', partial(check_import, 'numpy'), _reinstall('numpy')),
        Check('opencv', partial(check_import, 'cv2'), HEADLESS, ('numpy',)),
        _mm_check('mmengine', *base, parts=('mmengine.runner',)),
        _mm_check('mmcv', *base, 'mmengine', parts=('mmcv.cnn', 'mmcv.ops')),
        _mm_check('mmseg', *mm, parts=('mmseg.models', 'mmseg.apis')),
        _mm_check('mmpretrain', *mm, 'torchvision', parts=('mmpretrain.models',), needed=False),
        _registration_check('mmseg'),
        _registration_check('mmpretrain', needed=False),
        Check('fusing', check_fusing, _reinstall_package(), (*torch, *mm)),
        Check('reading', check_reading, _reinstall_package(), (*torch, 'mmengine')),
        *_runtime_checks(),
        Check('cuda', check_cuda, pair, torch, needed=False),
    )


def examine(checks: tuple[Check, ...] | None = None) -> Iterator[Result]:
    """Run the checks in order; a check that crashes gives a result, too."""
    failed: set[str] = set()
    for check in all_checks() if checks is None else checks:
        missing = [name for name in check.after if name in failed]
        needs = f'needs {", ".join(missing)}'
        result = Result(check, 'skipped', needs) if missing else _try(check)
        if result.state != 'ok':
            failed.add(check.name)
        yield result


def _try(check: Check) -> Result:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return Result(check, 'ok', check.run())
    except Problem as problem:
        state = 'absent' if isinstance(problem, Absent) else 'FAIL'
        return Result(check, state, str(problem), problem.command)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and '.' not in missing:  # a dependency, not a file lost from a package
            text, command = explain_missing(missing)
            return Result(check, 'FAIL', text, command or check.command)
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        return Result(check, 'FAIL', text, check.command)


def main(argv: list[str] | None = None) -> int:
    """Print all results and fixes; return 0 if everything needed works, else 1."""
    argparse.ArgumentParser(
        prog='python -m mmseg_repvgg.doctor', description='Show what works and how to fix the rest.'
    ).parse_args(argv)
    print(f'mmseg_repvgg {__version__} on {platform.platform()}')
    results = []
    for result in examine():
        results.append(result)
        print(f'{result.state:8} {result.check.name:13} {result.text}', flush=True)
    problems = [result for result in results if result.state == 'FAIL']
    for number, result in enumerate(problems, start=1):
        kind = 'needed' if result.check.needed else 'optional'
        print(f'\nProblem {number}, {result.check.name} ({kind}): {result.text}')
        print(f'    {result.command}')
    is_broken = any(result.is_fatal for result in results)
    print(f'\n{"Something needed does not work." if is_broken else "Everything needed works."}')
    return int(is_broken)


if __name__ == '__main__':
    sys.exit(main())
