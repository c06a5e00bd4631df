"""The command line: ``mmseg-repvgg COMMAND ...`` and ``python -m mmseg_repvgg COMMAND ...``.

A command is a module of :mod:`mmseg_repvgg.commands`, imported only when it is run, so that the
list of commands needs neither PyTorch nor an mm package. The scripts in ``tools`` call the same
modules.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mmseg_repvgg.package_versions import MODULES, explain_missing
from mmseg_repvgg.version import __version__

PROGRAM = 'mmseg-repvgg'
GROUPS = {
    'train and evaluate': ('train', 'test', 'plot', 'swap-backbone', 'convert-weights'),
    'deploy': (
        'fuse',
        'export',
        'predict',
        'serve',
        'serve-web',
        'compare-exported',
        'bench-model',
    ),
    'data': (
        'check-data',
        'convert-masks',
        'prepare-cityscapes',
        'prepare-camvid',
        'make-demo-scenes',
    ),
    'measure': ('benchmark', 'train-camvid', 'estimate-memory', 'learning-rates', 'paper-tables'),
    'try and check': ('demo', 'doctor', 'gpu-check'),
}
"""The commands, in the order of the help."""
SERVICE = ('fastapi', 'prometheus_client', 'uvicorn')
"""Packages of the command serve only."""
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


def summary(command: str) -> str:
    """What a command does, in one line: its docstring up to the example."""
    file = Path(__file__).with_name('commands') / f'{_module(command)}.py'
    text = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
    return text.partition(': ``')[0].partition('\n')[0]


def help_text() -> str:
    """The list of the commands."""
    lines = [f'usage: {PROGRAM} COMMAND ...', '', 'RepVGG backbones for mmsegmentation.']
    for title, names in GROUPS.items():
        lines += ['', f'{title}:', *(f'  {name:20}{summary(name)}' for name in names)]
    lines += ['', f'{PROGRAM} COMMAND --help lists the options; {PROGRAM} --version the version.']
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a command.

    Args:
        argv: The command and its arguments; by default those of this process.

    Returns:
        The exit code; None counts as 0.
    """
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ['']
    if command in ('', '-h', '--help'):
        print(help_text(), file=sys.stdout if command else sys.stderr)
        return 0 if command else 2
    if command == '--version':
        print(f'{PROGRAM} {__version__}')
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command.replace('_', '-'), COMMANDS, n=1)
        hint = f'; did you mean {near[0]}?' if near else ''
        print(
            f"{PROGRAM}: error: no command '{command}'{hint} {PROGRAM} --help lists all.",
            file=sys.stderr,
        )
        return 2
    # argparse takes the name of the program from here
    sys.argv = [f'{PROGRAM} {command}', *rest]
    try:
        module = importlib.import_module(f'mmseg_repvgg.commands.{_module(command)}')
    except ModuleNotFoundError as error:
        missing = (error.name or '').partition('.')[0]
        if missing in ('', 'mmseg_repvgg'):
            raise
        print(f'{PROGRAM} {command}: error: {_how_to_install(missing)}', file=sys.stderr)
        return 1
    return module.main()


def _module(command: str) -> str:
    return command.replace('-', '_')


def _how_to_install(module: str) -> str:
    text, command = explain_missing(module)
    if module in SERVICE:
        command = f"pip install '{PROGRAM}[serve]'"
    elif module in ('torch', *MODULES):
        command = f"pip install '{PROGRAM}[openmmlab]'   # or [onedl]"
    return f'{text}\n    {command}' if command else text
