"""The forms in which training codes hand out the same weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WRAPPINGS = {
    'bare': lambda state: state,
    'state_dict': lambda state: dict(state_dict=state, meta=dict(epoch=3)),
    'model': lambda state: dict(model=state, epoch=3),
    'ema': lambda state: dict(ema=state, step=7),
    'nested': lambda state: dict(model=dict(state_dict=state)),
    'module': lambda state: {f'module.{name}': tensor for name, tensor in state.items()},
    'compiled': lambda state: {f'_orig_mod.{name}': tensor for name, tensor in state.items()},
    'fsdp': lambda state: {
        f'_fsdp_wrapped_module.{name.replace("stem.", "stem._checkpoint_wrapped_module.")}': tensor
        for name, tensor in state.items()
    },
    'deepspeed': lambda state: {
        f'_forward_module.model.{name}': tensor for name, tensor in state.items()
    },
    'averaged': lambda state: {
        'n_averaged': torch.tensor(3),
        **{f'module.{name}': tensor for name, tensor in state.items()},
    },
    'lightning': lambda state: dict(
        state_dict={f'model.{name}': tensor for name, tensor in state.items()}, epoch=3
    ),
    'state_dict_ema': lambda state: dict(state_dict_ema=state),
    'counted': lambda state: {**state, 'head.total_ops': torch.zeros(1)},
    'module in model': lambda state: dict(model={f'module.{n}': t for n, t in state.items()}),
}
FORMS = (*WRAPPINGS, 'safetensors')


def write(form: str, state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write weights in one of FORMS."""
    if form == 'safetensors':
        file = folder / 'weights.safetensors'
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        file = folder / f'{form.replace(" ", "_")}.pth'
        torch.save(WRAPPINGS[form](dict(state)), file)
    return file
