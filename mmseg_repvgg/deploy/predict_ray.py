"""Label maps and class shares of large sets of images, by the processes of Ray.

``mmseg-repvgg predict --engine ray``; see docs/large-sets.md. Needs Ray Data and pyarrow, the extra
``ray``. Only this process writes the table, so that a killed worker leaves nothing twice in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from mmseg_repvgg.deploy.labeller import ATTEMPTS, Labeller
from mmseg_repvgg.deploy.predict import progress, share_lines
from mmseg_repvgg.deploy.ray_workers import Workers, start_ray
from mmseg_repvgg.deploy.result_files import check_label_format
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.share_table import ShareTable
from mmseg_repvgg.deploy.storage import Folder

FAILURES, SETTINGS = 'failures.csv', 'settings.json'
"""What is written besides label maps and the table."""

MOST_IMAGES_OF_TASK = 64
"""So many are done again if their process dies; each task costs Ray the same time."""

IMAGES_OF_DATASET = 100_000
"""Images that are given to Ray at once."""

SHOWN_FAILURES = 20


@dataclass
class LargeReport:
    """What :func:`predict_ray` did."""

    out: str
    done: int = 0
    skipped: int = 0  # done by an earlier call
    failures: dict[str, str] = field(default_factory=dict)  # the reason for each image
    pixels: Counter[str] = field(default_factory=Counter)  # of each class, of what was segmented

    def __str__(self) -> str:
        lines = [f'failed: {name}: {text}' for name, text in self.failures.items()]
        if len(lines) > SHOWN_FAILURES:
            lines[SHOWN_FAILURES:] = [f'... all are in {self.out}/{FAILURES}']
        skipped = f', {self.skipped} skipped (done earlier)' if self.skipped else ''
        done = f'{self.done} done, {len(self.failures)} failed{skipped}'
        return '\n'.join([*lines, *share_lines(self.pixels), done, f'results: {self.out}'])


def predict_ray(
    segmenter: Segmenter,
    source: str,
    out: str,
    workers: Workers | None = None,
    save_labels: str = 'palette',
    resume: bool = False,
) -> LargeReport:
    """Segment all images of a folder and its subfolders, with several processes.

    For ``a/b.jpg``, the label map ``labels/a/b.jpg.png`` is written, and a row of the table in
    ``shares``: height, width, and the share of each class in the pixels. Images that cannot be
    segmented are listed in ``failures.csv``. If a process dies, another does its images again; an
    image with which it dies every time is a failure. Progress is shown on a terminal.

    Args:
        segmenter: The model. Its file has to be at the same path on each machine of a cluster.
        source: The folder: a path, or an address that pyarrow knows (``s3://bucket/images``).
        out: The folder to write to, the same; it must be empty or not there.
        workers: The processes; by default one per CPU of this machine.
        save_labels: Format of label maps, one of :data:`.result_files.LABEL_FORMATS`.
        resume: Continue in an ``out`` that an earlier call has begun: images in the table are
            skipped, those that failed are tried again.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If there are no images, ``out`` holds something else, or on a wrong argument.
        OSError: If nothing can be read or written.
        RuntimeError: If Ray cannot be started, or stops.
    """
    check_label_format(save_labels, segmenter.info)
    workers = workers or Workers()
    images, results = Folder(source), Folder(out)
    if images.contains(results):
        raise ValueError(f'OUT {out} lies in the folder of the images; give another folder')
    names = images.images()
    info = segmenter.info
    settings = dict(
        images=images.path,
        model=info.model_sha256 or info.source_sha256,
        save_labels=save_labels,
        pad_small_images=segmenter.pad_small_images,
    )
    _begin(results, settings, resume)
    table = ShareTable(results, info.classes)
    done = table.images()
    left = [name for name in names if name not in done]
    report = LargeReport(str(results), skipped=len(names) - len(left))
    if left:
        labeller = segmenter, images, results, save_labels, workers.threads
        with start_ray(workers) as count, table:
            _Job(labeller, workers, count, report, table).run(left)
    _write_failures(results, report.failures)
    return report


def _begin(out: Folder, settings: dict[str, Any], resume: bool) -> None:
    """Check that the folder is empty, or was begun with the same settings; write them."""
    if not out.exists(SETTINGS):
        if not out.is_empty():
            raise ValueError(f'OUT {out} is not empty; give another folder')
        out.write(SETTINGS, json.dumps(settings, indent=1).encode())
        return
    if not resume:
        raise ValueError(
            f'OUT {out} holds the results of an earlier call; continue it with --resume, or give '
            'another folder'
        )
    earlier = json.loads(out.read(SETTINGS))
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise ValueError(
                f'OUT {out} was begun with {key}={earlier.get(key)!r}, not {value!r}; continue it '
                'with the same, or give another folder'
            )


def _write_failures(out: Folder, failures: dict[str, str]) -> None:
    if not failures:
        out.remove(FAILURES)
        return
    text = io.StringIO()
    csv.writer(text).writerows([('image', 'reason'), *failures.items()])
    out.write(FAILURES, text.getvalue().encode())


def task_size(images: int, workers: int) -> int:
    """Images of a task: so few that all workers end at about the same time."""
    return min(MOST_IMAGES_OF_TASK, max(1, images // (8 * workers)))


@dataclass
class _Job:
    """Gives the images to the workers, and takes their rows."""

    labeller: tuple[Any, ...]  # arguments of Labeller, but for begin
    workers: Workers
    count: int  # of workers
    report: LargeReport
    table: ShareTable

    def run(self, names: Sequence[str]) -> None:
        with progress(total=len(names), unit='image') as bar:
            for start in range(0, len(names), IMAGES_OF_DATASET):
                part = names[start : start + IMAGES_OF_DATASET]
                died = self._run(part, task_size(len(part), self.count), bar)
                self._fail(self._run(died, 1, bar))  # one bad image takes its neighbours with it

    def _fail(self, died: Sequence[str]) -> None:
        for name in died:
            self.report.failures[name] = f'the process that segmented it died {ATTEMPTS} times'

    def _run(self, names: Sequence[str], images_per_task: int, bar: Any) -> list[str]:
        """Segment images; those whose process died every time are returned."""
        left, died = set(names), []
        for batch in self._batches(names, images_per_task) if names else ():
            for row in batch.to_pylist():
                if row['image'] not in left:
                    continue
                left.remove(row['image'])
                if row['state'] == 'died':
                    died.append(row['image'])
                else:
                    self._take(row)
                    bar.update()
        if left:
            raise RuntimeError(f'Ray lost {len(left)} images; continue with --resume')
        return died

    def _batches(self, names: Sequence[str], images_per_task: int) -> Iterator[pa.Table]:
        import ray.data

        attempts = ray.remote(num_cpus=0)(Attempts).remote()
        tasks = -(-len(names) // images_per_task)
        dataset = ray.data.from_items(list(names), override_num_blocks=tasks).map_batches(
            Labeller,
            fn_constructor_args=[*self.labeller, partial(_begin_task, attempts)],
            batch_size=None,
            batch_format='pyarrow',
            compute=ray.data.ActorPoolStrategy(
                size=min(self.count, tasks),
                max_tasks_in_flight_per_actor=2,  # one waits
            ),
            num_cpus=self.workers.threads,
            num_gpus=self.workers.num_gpus,
        )
        dataset.context.enable_progress_bars = False
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format='pyarrow')
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RuntimeError(f'Ray stopped: {reason}; continue with --resume') from error

    def _take(self, row: dict[str, Any]) -> None:
        if row['state'] == 'full':
            raise OSError(f'{row["image"]}: {row["error"]}')
        if row['state'] == 'failed':
            self.report.failures[row['image']] = row['error']
            return
        self.report.done += 1
        self.report.pixels.update(dict(zip(self.table.classes, row['counts'], strict=True)))
        self.table.add(row)


class Attempts:
    """Counts how often tasks are begun, in a process of its own.

    Ray repeats a task whose process died without end.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def begin(self, task: str) -> int:
        """Count a task; returns how often it has been begun."""
        self.counts[task] += 1
        return self.counts[task]


def _begin_task(attempts: Any, task: str) -> int:
    import ray

    return ray.get(attempts.begin.remote(task))
