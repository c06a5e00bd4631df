"""The files of ONNX Runtime Web, from its npm package."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE, VERSION = 'onnxruntime-web', '1.30.0'
INTEGRITY = (
    'sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8p'
    'ZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
)
"""Of the tarball, as npm writes it: ``npm view onnxruntime-web@VERSION dist.integrity``."""

FILES = (
    'package.json',  # with version and licence
    # for the CPU
    'dist/ort.wasm.min.mjs',
    'dist/ort-wasm-simd-threaded.mjs',
    'dist/ort-wasm-simd-threaded.wasm',
    # for WebGPU
    'dist/ort.webgpu.min.mjs',
    'dist/ort-wasm-simd-threaded.asyncify.mjs',
    'dist/ort-wasm-simd-threaded.asyncify.wasm',
)
"""What the page needs, within the package; 41 MB of 140."""

TARBALL = f'{PACKAGE}-{VERSION}.tgz'
SECONDS = 600  # for npm, to download 33 MB


def has_runtime(folder: Path) -> bool:
    """Whether a folder holds all files of this version, as :func:`copy_runtime` writes them."""
    names = [Path(name).name for name in FILES]
    complete = all((folder / name).is_file() for name in names)
    return complete and _version(folder / 'package.json') == VERSION


@contextmanager
def web_runtime(given: str | Path | None = None) -> Iterator[Path]:
    """Give the unpacked npm package; only the files in :data:`FILES` are there.

    Args:
        given: The tarball that ``npm pack`` wrote, or the unpacked package, such as
            ``node_modules/onnxruntime-web``; None: npm downloads it.

    Raises:
        FileNotFoundError: If ``given`` is not there.
        ValueError: If it is another version, or damaged.
        RuntimeError: If npm is not installed, or fails; says what to do.
    """
    if given is not None and Path(given).is_dir():
        yield _checked_folder(Path(given))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tarball = _download(folder) if given is None else Path(given)
        if not tarball.is_file():
            raise FileNotFoundError(
                f'{tarball} not found: --web-runtime takes the file {TARBALL} that npm pack '
                f'{PACKAGE}@{VERSION} writes, or the folder node_modules/{PACKAGE}'
            )
        yield _unpack(tarball, folder / 'unpacked')


def copy_runtime(package: Path, folder: Path) -> None:
    """Copy the files of an unpacked package into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(package / name, folder / Path(name).name)


def _checked_folder(folder: Path) -> Path:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f'{folder} is not the package {PACKAGE}: it lacks {", ".join(missing)}. Give '
            f'node_modules/{PACKAGE}, or the file {TARBALL} that npm pack writes'
        )
    version = _version(folder / 'package.json')
    if version != VERSION:
        raise ValueError(
            f'{folder} has version {version} of {PACKAGE}; the page was tested with {VERSION}: '
            f'npm install {PACKAGE}@{VERSION}'
        )
    return folder


def _version(file: Path) -> str | None:
    try:
        return json.loads(file.read_text(encoding='utf-8')).get('version')
    except (OSError, ValueError, AttributeError):
        return None


def _download(folder: Path) -> Path:
    remedy = (
        f'On a machine with npm and network run npm pack {PACKAGE}@{VERSION}, and give the file '
        f'that it writes: --web-runtime {TARBALL}'
    )
    npm = shutil.which('npm')
    if npm is None:
        raise RuntimeError(
            f'npm, which downloads {PACKAGE}, is not installed: install Node.js. {remedy}'
        )
    command = [npm, 'pack', f'{PACKAGE}@{VERSION}', '--ignore-scripts', '--loglevel=error']
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f'npm did not download {PACKAGE} in {SECONDS} seconds. {remedy}'
        ) from error
    if done.returncode:
        reason = ' '.join(done.stderr.split())[-300:]
        raise RuntimeError(f'npm could not download {PACKAGE}@{VERSION}: {reason}. {remedy}')
    return folder / TARBALL


def _unpack(tarball: Path, folder: Path) -> Path:
    digest = hashlib.sha512(tarball.read_bytes()).digest()
    found = f'sha512-{base64.b64encode(digest).decode()}'
    if found != INTEGRITY:
        raise ValueError(
            f'{tarball} is not {PACKAGE} {VERSION} as npm publishes it: its hash is {found}, not '
            f'{INTEGRITY}. It is another version, or damaged: run npm pack {PACKAGE}@{VERSION}'
        )
    with tarfile.open(tarball) as archive:
        for name in FILES:
            content = archive.extractfile(f'package/{name}')
            assert content is not None
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open('wb') as stream:
                shutil.copyfileobj(content, stream)
    return folder
