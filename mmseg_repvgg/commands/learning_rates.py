"""Train at several learning rates: ``mmseg-repvgg learning-rates benchmarks/learning_rate``.

RepVGG-A0 on the demo scenes, with and without warm-up; minutes each on two CPU cores. Writes a JSON
file per training, and OUT/learning_rates.md and .png from all files in OUT. Skips trainings whose
file is there.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path

from mmseg_repvgg.analysis import learning_rates
from mmseg_repvgg.command_line import user_errors


def main() -> None:
    """Parse the options, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder for the results')
    parser.add_argument('--rates', type=float, nargs='*', default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument('--warm-ups', type=int, nargs='*', default=[0, 40], help='iterations')
    parser.add_argument('--seeds', type=int, nargs='*', default=[0])
    parser.add_argument('--iterations', type=int, default=120)
    parser.add_argument('--crop', type=int, default=129, help='height and width in pixels')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--scenes', type=Path, default=Path('data/learning_rate_scenes'))
    args = parser.parse_args()
    with user_errors('learning_rates'):
        for rate, warm_up, seed in product(args.rates, args.warm_ups, args.seeds):
            curve = learning_rates.Curve(
                rate, warm_up, args.iterations, args.crop, args.batch, seed
            )
            if (args.out / f'{curve.name}.json').is_file():
                continue
            with tempfile.TemporaryDirectory() as folder:
                curve = learning_rates.train_curve(curve, args.scenes, Path(folder))
            learning_rates.write_curve(curve, args.out)
        curves = learning_rates.read_curves(args.out)
        text = learning_rates.table(curves)
        (args.out / 'learning_rates.md').write_text(text + '\n', encoding='utf-8')
        learning_rates.plot(curves, args.out / 'learning_rates.png')
        print(text)
