"""How fast a network learns one batch of its training set by heart, class by class.

Command: python -m tests.one_batch CONFIG [--steps 45] [--sgd] [--cfg-options ...]

A few minutes show what a whole training hides: a network that cannot learn a class from one batch
seen again and again will not learn it from many.
"""

import argparse

import torch
import torch.nn.functional as F
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed

from mmseg_repvgg.engine.launch import load_config

WARM_UP = 20


def learn(cfg, steps, optimizer):
    """Yield step, loss, and the IoU of each class in percent, every 15 steps."""
    init_default_scope(cfg.default_scope)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    set_random_seed(0)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    model.train()
    data = model.data_preprocessor(batch, True)
    truth = torch.stack([sample.gt_sem_seg.data[0] for sample in data['data_samples']])
    trained = optimizer(model.parameters())
    (rate,) = {group['lr'] for group in trained.param_groups}
    for step in range(1, steps + 1):
        for group in trained.param_groups:
            group['lr'] = rate * min(1, step / WARM_UP)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        trained.zero_grad()
        loss.backward()
        trained.step()
        if step % 15 == 0:
            yield step, loss.item(), ious(model, data, truth)


@torch.no_grad()
def ious(model, data, truth):
    """In percent, of the classes of the batch."""
    logits = model(data['inputs'], data['data_samples'], mode='tensor')
    found = F.interpolate(logits, truth.shape[1:], mode='bilinear').argmax(1)
    result = []
    for index in range(model.decode_head.num_classes):
        here, wanted = (found == index) & (truth != 255), truth == index
        union = (here | wanted).sum()
        result.append(round(100 * ((here & wanted).sum() / union).item()) if union else None)
    return result


def main():
    """Print a line every 15 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--steps', type=int, default=45)
    parser.add_argument('--sgd', action='store_true', help='0.05 with momentum, not AdamW 0.002')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()

    def optimizer(parameters):
        if args.sgd:
            return torch.optim.SGD(parameters, 0.05, 0.9, weight_decay=5e-4)
        return torch.optim.AdamW(parameters, 0.002, weight_decay=0.01)

    MMLogger.get_instance('mmengine', log_level='ERROR')
    for line in learn(load_config(args.config, args.cfg_options), args.steps, optimizer):
        print(*line, flush=True)


if __name__ == '__main__':
    main()
