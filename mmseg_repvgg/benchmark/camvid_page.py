"""The table and the pictures of the trainings of :mod:`mmseg_repvgg.benchmark.camvid_trainings`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.benchmark.camvid import (
    FUSED,
    NETWORK_CONFIGS,
    OURS,
    RECIPES,
    REWRITTEN,
    at_camvid_size,
    costs,
    images_per_second,
)
from mmseg_repvgg.benchmark.camvid_trainings import Training
from mmseg_repvgg.benchmark.page import scatter
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.markdown import markdown_table
from mmseg_repvgg.plots.curves import Training as Curve
from mmseg_repvgg.plots.curves import draw_curves
from mmseg_repvgg.plots.style import bar_height, grouped_bars, new_figure, save

PAGE, PICTURE, CURVES = 'camvid_trainings.md', 'camvid_trainings.png', 'camvid_curves.png'


def write_page(out: Path, speeds: Record | None = None) -> str:
    """Write the table and the picture of all records in a folder.

    Args:
        out: The folder.
        speeds: A record of ``mmseg-repvgg benchmark camvid``, for speeds and costs.

    Returns:
        The text of the page.

    Raises:
        ValueError: If there are no records, or one is damaged.
    """
    found: dict[str, list[Training]] = {}
    for path in sorted(out.glob('*_seed*.json')):
        training = Training.read(path)
        found.setdefault(training.name, []).append(training)
    if not found:
        raise ValueError(f'{out} holds no records; train with mmseg-repvgg train-camvid {out}')
    networks = {name: found[name] for name in NETWORK_CONFIGS if name in found}
    recipes = {name: found[name] for name in RECIPES if name in found}
    networks = networks or recipes  # if nothing else was trained
    text = f'# Trainings on CamVid\n\n{table(networks, speeds)}\n\n{_provenance(networks)}\n'
    if recipes:
        text += f'\n{recipe_table(recipes, found)}\n'
    with atomic_file(out / PAGE) as temporary:
        temporary.write_text(text, encoding='utf-8')
    plot(networks, speeds, out / PICTURE)
    save(draw_curves([curve(runs[0]) for runs in networks.values()]), out / CURVES)
    return text


def table(trainings: Mapping[str, Sequence[Training]], speeds: Record | None = None) -> str:
    """A row per network in Markdown, the best mIoU first."""
    timed = _timed(speeds) if speeds else {}
    titles = ['network', 'mIoU, %', 'over seeds', 'pixel accuracy, %', 'minutes']
    titles += ['parameters, M', 'G multiply-adds'] if speeds else []
    lines = []
    for name, runs in sorted(trainings.items(), key=lambda item: -mean_miou(item[1])):
        scores = [run.miou for run in runs]
        spread = f'{min(scores):.2f} to {max(scores):.2f}' if len(runs) > 1 else None
        accuracy = statistics.mean(run.pixel_accuracy for run in runs)
        times = [run.seconds / 60 for run in runs if run.seconds is not None]
        minutes = f'{statistics.mean(times):.0f}' if times else None
        line = [name, f'{mean_miou(runs):.2f}', spread, f'{accuracy:.2f}', minutes]
        if speeds:
            row = speeds.row(f'{name}, {FUSED}')
            line += costs(row) if row else [None, None]
            rates = [images_per_second(speeds, name, *measured) for measured in timed.values()]
            line += [None if rate is None else f'{rate:.1f}' for rate in rates]
        lines.append(line)
    titles += [f'images/s, {title}' for title in timed]
    return markdown_table(titles, lines)


def _timed(speeds: Record) -> dict[str, tuple[str, str]]:
    """Runtime and form of each column of speeds, by its title."""
    found = {}
    for runtime in at_camvid_size(speeds):
        found[runtime] = (runtime, FUSED)
        if runtime == 'pytorch':
            found[f'{runtime} {REWRITTEN}'] = (runtime, REWRITTEN)
    return found


def recipe_table(
    recipes: Mapping[str, Sequence[Training]], trained: Mapping[str, Sequence[Training]]
) -> str:
    """A row per recipe in Markdown: its mIoU, and the points that it adds with the same seeds."""
    network = next(iter(OURS))
    base = {run.seed: run.miou for run in trained.get(network, ())}
    lines = []
    for name, runs in sorted(recipes.items(), key=lambda item: -mean_miou(item[1])):
        gains = [run.miou - base[run.seed] for run in runs if run.seed in base]
        gain = f'{statistics.mean(gains):+.2f}' if gains else None
        lines.append([name, f'{mean_miou(runs):.2f}', gain, str(len(runs)), str(runs[0].images)])
    return markdown_table(
        [f'{network}, trained with', 'mIoU, %', 'points more', 'seeds', 'crops'], lines
    )


def curve(training: Training) -> Curve:
    """A training for :func:`mmseg_repvgg.plots.curves.draw_curves`."""
    rows: list[tuple[int, dict[str, Any]]] = [
        *((int(step), dict(loss=loss)) for step, loss in training.losses),
        *((int(step), dict(mIoU=miou)) for step, miou in training.validations),
    ]
    return Curve(training.name, sorted(rows, key=lambda row: row[0]))


def mean_miou(runs: Sequence[Training]) -> float:
    """The mean over seeds, in percent."""
    return statistics.mean(run.miou for run in runs)


def _provenance(trainings: Mapping[str, Sequence[Training]]) -> str:
    runs = [run for found in trainings.values() for run in found]
    processors = ' / '.join(sorted({run.machine.get('processor', '?') for run in runs}))
    images = ' / '.join(str(n) for n in sorted({run.images for run in runs}))
    commits = ', '.join(sorted({run.commit or 'unknown' for run in runs}))
    return (
        f'Each network was trained from scratch on {images} crops by its own command, such as '
        f'`{runs[0].command}`: {processors}, commit {commits}. mIoU and pixel accuracy are those '
        "of CamVid's validation images after the last iteration; minutes are those of the "
        'iterations, and depend on what else ran.'
    )


def plot(trainings: Mapping[str, Sequence[Training]], speeds: Record | None, path: Path) -> None:
    """MIoU against speed in every runtime, or bars of the mIoU without speeds."""
    scores = {name: mean_miou(runs) for name, runs in trainings.items()}
    if speeds is None:
        figure = new_figure(bar_height(list(scores), {'mIoU': scores}))
        axes = figure.subplots()
        grouped_bars(axes, list(scores), {'mIoU': list(scores.values())})
        axes.set_xlabel('mIoU on CamVid val, %')
        save(figure, path)
        return
    panels: dict[str, dict[str, tuple[float, float]]] = {}
    for runtime in at_camvid_size(speeds):
        points = {}
        for name, score in scores.items():
            rate = images_per_second(speeds, name, runtime)
            if rate is not None:
                points[name] = rate, score
        if points:
            panels[runtime] = points
    scatter(path, panels, 'images a second, fused', 'mIoU on CamVid val, %')
