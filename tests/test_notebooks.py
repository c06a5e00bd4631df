"""The notebooks run and show what they say; each .ipynb has the cells of its .py, and outputs."""

import json
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = Path(__file__).parents[1] / 'notebooks'
NAMES = ('own_data_to_overlay', 'repvgg_in_ten_cells')
MACHINE_PATH = re.compile(r'/(home|root|tmp|usr|opt|work|content)/')


def cells_of_script(text):
    """The kind and source of each cell of a script in jupytext's percent format."""
    cells = []
    for part in re.split(r'^# %%', text, flags=re.MULTILINE)[1:]:
        title, _, source = part.partition('\n')
        kind = 'markdown' if title.strip() == '[markdown]' else 'code'
        if kind == 'markdown':
            source = re.sub(r'^# ?', '', source, flags=re.MULTILINE)
        cells.append((kind, source.strip('\n')))
    return cells


def run(name, folder, monkeypatch, old='', new=''):
    """Run a script in a folder, with the text ``old`` in it replaced; returns its variables."""
    text = (NOTEBOOKS / f'{name}.py').read_text()
    assert old in text
    (folder / 'notebook.py').write_text(text.replace(old, new))
    monkeypatch.chdir(folder)
    try:
        return runpy.run_path('notebook.py')
    finally:
        plt.close('all')


def test_all_notebooks_are_tested():
    for ending in ('py', 'ipynb'):
        assert {path.stem for path in NOTEBOOKS.glob(f'*.{ending}')} == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_the_notebook_has_the_cells_of_the_script(name):
    notebook = json.loads((NOTEBOOKS / f'{name}.ipynb').read_text())
    cells = [(cell['cell_type'], ''.join(cell['source'])) for cell in notebook['cells']]
    assert cells == cells_of_script((NOTEBOOKS / f'{name}.py').read_text())
    assert [source for kind, source in cells if kind == 'code' and source.count('\n') >= 15] == []


@pytest.mark.parametrize('name', NAMES)
def test_the_notebook_is_executed_and_small(name):
    path = NOTEBOOKS / f'{name}.ipynb'
    assert path.stat().st_size < 300_000
    code = [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell['outputs']]
    assert any('image/png' in output.get('data', {}) for output in outputs)
    for output in outputs:
        assert output['output_type'] in ('stream', 'display_data')
        assert output.get('name') != 'stderr'
        text = ''.join(output.get('text', ()))
        assert not MACHINE_PATH.search(text), text


def test_repvgg_in_ten_cells(tmp_path, monkeypatch):
    """On a smaller image than in the notebook."""
    found = run('repvgg_in_ten_cells', tmp_path, monkeypatch, '256, 384', '64, 96')
    assert found['max_difference'] < 1e-5 < 0.1 < found['wrong_difference']
    assert found['dilation_difference'] < 1e-5
    assert found['difference'].max_rel < 1e-4
    assert found['counts'] == {'branches': 22, 'dilation': 15}  # stages of 14 and 1 blocks
    assert {len(times) for times in found['seconds'].values()} == {6}


@pytest.mark.slow
def test_own_data_to_overlay(tmp_path, monkeypatch):
    found = run('own_data_to_overlay', tmp_path, monkeypatch)
    assert found['losses'][-1] < found['losses'][0] / 2
    assert found['miou'] > 60
    # the exported network is the trained one, up to pixels on which two classes tie
    assert found['exported_miou'] == pytest.approx(found['miou'], abs=0.1)
