"""docs/recipes.md: what its settings do, and that its figures are those that were measured."""

from pathlib import Path

from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.analysis.learning_rates import read_curves, table
from tests.common import TINY, segmentor_cfg

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / 'docs' / 'recipes.md').read_text()


def test_weight_decay_is_that_of_the_authors():
    """None on biases and on the norms of the 3x3 and 1x1 branches, as the official README says."""
    settings: dict = {}
    exec(TEXT.split('```python')[1].split('```')[0], settings)
    init_default_scope('mmseg')
    model = MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64)))
    wrapper = build_optim_wrapper(model, dict(settings['optim_wrapper'], type='OptimWrapper'))
    decay = {
        id(parameter): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    without = ('.bias', 'branch_3x3.norm.weight', 'branch_1x1.norm.weight')
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0 if name.endswith(without) else 1e-4), name
    assert any('branch_norm.weight' in name for name, _ in model.named_parameters())


def test_the_table_of_learning_rates_is_that_of_the_kept_curves():
    assert table(read_curves(PROJECT / 'benchmarks' / 'learning_rate')) in TEXT
