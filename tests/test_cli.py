"""The command line: its list, its errors, and the same code behind tools/."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mmseg_repvgg import cli
from mmseg_repvgg.version import __version__

PROJECT = Path(__file__).parents[1]
TOOL_NAMES = {'fuse': 'deploy_fuse'}
"""Scripts of another name than their command; the names in tools/ are older."""


def call(*args, cwd=None):
    return subprocess.run(
        [sys.executable, '-m', 'mmseg_repvgg', *args], cwd=cwd, capture_output=True, text=True
    )


def test_the_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        'import sys; from mmseg_repvgg.cli import main; main(["--help"]); '
        'print(sorted({"torch", "mmengine", "numpy", "cv2"} & set(sys.modules)), file=sys.stderr)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stderr.strip() == '[]'
    for command in cli.COMMANDS:
        (line,) = [x for x in done.stdout.splitlines() if x.startswith(f'  {command} ')]
        assert len(line.split(maxsplit=1)[1]) > 10, line
        assert len(line) < 80
    assert done.stdout == call('-h').stdout


def test_every_module_is_a_command():
    files = (PROJECT / 'mmseg_repvgg' / 'commands').glob('[a-z]*.py')
    assert sorted(cli.COMMANDS) == sorted(path.stem.replace('_', '-') for path in files)


def test_every_tool_is_a_door_to_a_command():
    names = {TOOL_NAMES.get(c, c.replace('-', '_')): c for c in cli.COMMANDS if c != 'doctor'}
    assert sorted(names) == sorted(path.stem for path in (PROJECT / 'tools').glob('*.py'))
    for stem, command in names.items():
        lines = (PROJECT / 'tools' / f'{stem}.py').read_text().splitlines()
        assert lines[0] == f'"""The same as ``mmseg-repvgg {command}``."""'
        assert f'from mmseg_repvgg.commands.{command.replace("-", "_")} import main' in lines
        assert len(lines) < 10


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_a_command_has_options_and_its_own_name(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, 'argv', ['x'])
    with pytest.raises(SystemExit) as end:
        cli.main([command, '--help'])
    assert end.value.code == 0
    out = capsys.readouterr().out
    name = 'python -m mmseg_repvgg.doctor' if command == 'doctor' else f'mmseg-repvgg {command}'
    assert out.startswith(f'usage: {name} [-h]')
    assert 'tools/' not in out


def test_the_version():
    assert call('--version').stdout == f'mmseg-repvgg {__version__}\n'


def test_without_a_command_there_is_help():
    done = call()
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('usage: mmseg-repvgg COMMAND')


def test_an_unknown_command_is_one_line(capsys):
    assert cli.main(['swap_backbones']) == 2
    text = capsys.readouterr().err
    assert "no command 'swap_backbones'; did you mean swap-backbone?" in text
    assert len(text.splitlines()) == 1


def test_a_users_mistake_is_one_line(tmp_path):
    done = call('train', 'nowhere.py', cwd=tmp_path)
    assert done.returncode == 1
    assert 'train: error: config nowhere.py not found' in done.stderr
    assert 'Traceback' not in done.stderr


def test_what_a_service_lacks_for_training_is_named():
    code = """
import sys
sys.modules['torch'] = None  # as if it were not installed
from mmseg_repvgg.cli import main
sys.exit(main(['train', 'x.py']))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'mmseg-repvgg train: error: torch is not installed' in done.stderr
    assert "pip install 'mmseg-repvgg[openmmlab]'" in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_broken_command_keeps_its_traceback(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'mmseg_repvgg.x'", name='mmseg_repvgg.x')

    monkeypatch.setattr(sys, 'argv', ['x'])
    monkeypatch.setattr(cli.importlib, 'import_module', missing)
    with pytest.raises(ModuleNotFoundError):
        cli.main(['train'])


def test_main_is_that_of_the_module(monkeypatch):
    module = import_module('mmseg_repvgg.commands.paper_tables')
    monkeypatch.setattr(sys, 'argv', ['x'])
    monkeypatch.setattr(module, 'main', lambda: sys.argv)
    assert cli.main(['paper-tables', 'a', '-b']) == ['mmseg-repvgg paper-tables', 'a', '-b']
