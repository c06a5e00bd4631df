"""Measure the paper's speed tables: ``mmseg-repvgg benchmark table8``.

Models are measured in turn, each in its own process; run nothing else meanwhile. Writes
OUT/NAME.json (every single time, machine, versions), OUT/NAME.md and OUT/NAME.png.
"""

import argparse
import os
from pathlib import Path

from mmseg_repvgg.benchmark.forward import EXECUTIONS
from mmseg_repvgg.benchmark.protocol import Protocol
from mmseg_repvgg.benchmark.record import Record, joined
from mmseg_repvgg.benchmark.run import SUITES, run_benchmark, write
from mmseg_repvgg.command_line import user_errors


def main() -> None:
    """Parse the options, measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', choices=list(SUITES), help='what to measure')
    parser.add_argument('--out', default='benchmarks', type=Path, help='folder for the results')
    parser.add_argument('--runtimes', nargs='+', metavar='NAME', help=', '.join(EXECUTIONS))
    parser.add_argument(
        '--groups', nargs='+', metavar='NAME', help='only these groups of candidates'
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these candidates')
    parser.add_argument('--rounds', type=int, default=5, help='timed blocks of calls')
    parser.add_argument('--warm-up', type=int, default=3, help='blocks before them')
    parser.add_argument('--threads', type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        '--time-limit', type=float, default=600, help='seconds for building, and for each block'
    )
    parser.add_argument(
        '--quick', action='store_true', help='small networks, to test the benchmark itself'
    )
    parser.add_argument(
        '--join',
        nargs='+',
        type=Path,
        metavar='JSON',
        help='do not measure; write the tables of records that were measured group by group',
    )
    args = parser.parse_args()
    with user_errors('benchmark'):
        if args.join:
            write(joined([Record.read(path) for path in args.join]), args.out)
            return
        protocol = Protocol(args.rounds, args.warm_up, args.threads, args.time_limit)
        run_benchmark(
            args.name, args.out, args.runtimes, protocol, args.quick, args.groups, args.only
        )
        print((args.out / f'{args.name}.md').read_text(encoding='utf-8'))
