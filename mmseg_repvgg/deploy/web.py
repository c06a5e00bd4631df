"""A static page that runs exported models in the browser, with ONNX Runtime Web.

The files of the page are in ``web_page``; ``models.json`` names the models of a folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from mmseg_repvgg.atomic_files import atomic_file, sweep, temporary_folder, writable_folder
from mmseg_repvgg.deploy.model_description import ModelDescription, weight_files
from mmseg_repvgg.deploy.web_runtime import copy_runtime, has_runtime

PAGE = Path(__file__).with_name('web_page')
"""The files of the page."""

MODELS = 'models.json'


def needs_runtime(folder: str | Path) -> bool:
    """Whether a folder has no page yet, or one with another version of the runtime."""
    return not has_runtime(Path(folder) / 'runtime')


def check_page(model: str | Path, folder: str | Path) -> None:
    """Check that a model that is still to be exported can go into the page of a folder.

    Args:
        model: The file that is exported.
        folder: That of the page: a new or empty one, or one with a page.

    Raises:
        ValueError: If the model is not ONNX, or the folder has other files.
    """
    path, root = Path(model), Path(folder)
    if path.suffix != '.onnx':
        raise ValueError(
            f'OUT {str(path)!r} cannot go into a web page: ONNX Runtime Web reads .onnx only'
        )
    if root.is_file():
        raise ValueError(f'{root} is a file; give a folder for the page')
    if read_names(root) is None and root.is_dir() and any(root.iterdir()):
        raise ValueError(f'{root} has other files and no page in it: give a new folder')


def check_description(info: ModelDescription) -> None:
    """Check that the page can do what a model needs.

    Raises:
        ValueError: If it cannot; says what to change.
    """
    refused = 'the page in the browser cannot'
    if info.channels != 3 or info.color_type != 'color':
        raise ValueError(
            f'{refused} read images of {info.channels} channels as {info.color_type!r}: it takes '
            "models for images of three channels, read as 'color'"
        )
    if info.left_out:
        raise ValueError(
            f'{refused} do {", ".join(info.left_out)}, which --leave-out leaves to the caller: '
            'export without --web, or a config without these transforms'
        )
    if info.argmax_inside and info.stride is not None:
        raise ValueError(f'{refused} join windows of labels: export without --argmax')


def read_names(folder: str | Path) -> list[str] | None:
    """Names of the models of a page; None if the folder has no page."""
    try:
        names = json.loads((Path(folder) / MODELS).read_text(encoding='utf-8'))['models']
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return names if isinstance(names, list) else None


def write_page(model: str | Path, folder: str | Path, runtime: Path | None = None) -> Path:
    """Put an exported model into the page of a folder, and write the page if there is none.

    A new page appears whole or not at all. In a page that exists, the model is added to the others
    or replaces one of its name, and the files of the page become those of this version.

    Args:
        model: The exported .onnx, with its .json next to it.
        folder: That of the page.
        runtime: The unpacked npm package, from :func:`.web_runtime.web_runtime`; needed if
            :func:`needs_runtime`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If the model or its description is not there.
        ValueError: As :func:`check_page` and :func:`check_description`, or if the classes of the
            model are not those of the others.
        OSError: If it cannot be written.
    """
    path, root = Path(model), Path(os.path.abspath(folder))
    info = ModelDescription.read(path)
    check_page(path, root)
    check_description(info)
    if any(map(Path.is_file, weight_files(path))):
        raise ValueError(f'{path} has its weights in another file, which browsers cannot load')
    names = read_names(root)
    if names is not None:
        _check_classes(info, root, [name for name in names if name != path.name])
        _write_files(path, info, root, names, runtime)
        return root
    parent = writable_folder(root.parent)
    sweep(parent)
    with tempfile.TemporaryDirectory(prefix=temporary_folder(parent)) as temporary:
        written = Path(temporary) / 'page'
        _write_files(path, info, written, [], runtime)
        if root.is_dir():
            root.rmdir()  # it is empty; Windows does not replace it
        os.rename(written, root)
    return root


def _write_files(
    model: Path, info: ModelDescription, root: Path, names: list[str], runtime: Path | None
) -> None:
    """Write the runtime, the page and the model; it is listed only while it is complete."""
    if needs_runtime(root):
        assert runtime is not None
        copy_runtime(runtime, root / 'runtime')
    models = writable_folder(root / 'models')
    _write_names(root, [name for name in names if name != model.name])
    copied = [(file, root / file.name) for file in PAGE.iterdir() if file.is_file()]
    for source, target in (*copied, (model, models / model.name)):
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
    with atomic_file(models / f'{model.name}.json') as temporary:
        # with every field, also those that older files lack
        temporary.write_text(info.to_json(), encoding='utf-8')
    _write_names(root, names if model.name in names else [*names, model.name])


def _write_names(root: Path, names: list[str]) -> None:
    with atomic_file(root / MODELS) as temporary:
        temporary.write_text(json.dumps(dict(models=names), indent=1) + '\n', encoding='utf-8')


def _check_classes(info: ModelDescription, root: Path, names: list[str]) -> None:
    """Check that a model can be compared with the first one of a page."""
    for name in names[:1]:
        other = ModelDescription.read(root / 'models' / name)
        if other.classes != info.classes:
            raise ValueError(
                f'the classes of the model, {", ".join(info.classes)}, are not those of {name} in '
                f'{root}: give a new folder'
            )
