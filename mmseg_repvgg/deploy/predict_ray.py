"""Label maps and class shares of large sets of images, by the processes of Ray.

``mmseg-repvgg predict --engine ray``; see docs/large-sets.md. Needs Ray Data and pyarrow, the extra
``ray``. Only this process writes the table, so that a killed worker leaves nothing twice in it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from mmseg_repvgg.checks import check_integer
from mmseg_repvgg.deploy.labeller import Labeller
from mmseg_repvgg.deploy.predict import progress, share_lines
from mmseg_repvgg.deploy.result_files import check_label_format
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.share_table import ShareTable
from mmseg_repvgg.deploy.storage import Folder

FAILURES, SETTINGS = 'failures.csv', 'settings.json'
"""What is written besides label maps and the table."""

IMAGES_PER_TASK = 16
"""So many are done again if their process dies."""

ATTEMPTS = 3
"""How often a task is tried whose process dies."""

SHOWN_FAILURES = 20

OBJECT_STORE = 512 * 2**20
"""Bytes of Ray's memory for names of images and rows, started on this machine."""


@dataclass(frozen=True)
class Workers:
    """The processes that segment.

    Raises:
        ValueError: If a number is not positive.
    """

    count: int | None = None  # None: as many as there are CPUs for their threads
    threads: int = 1  # of each; those of the segmenter
    address: str | None = None  # of a cluster; None: Ray is started on this machine, and stopped
    num_gpus: int = 0  # of each

    def __post_init__(self) -> None:
        check_integer('threads', self.threads, 1)
        if self.count is not None:
            check_integer('workers', self.count, 1)

    @classmethod
    def sharing_cores(
        cls, count: int | None, threads: int | None, address: str | None = None, num_gpus: int = 0
    ) -> Workers:
        """Workers that share the CPUs of this machine, where numbers are not given.

        On a cluster, whose machines may differ, ``threads`` is 1 unless it is given.
        """
        workers = cls(count, 1 if threads is None else threads, address, num_gpus)
        if count is None or threads is not None or address is not None:
            return workers
        return replace(workers, threads=max(1, num_cores() // count))


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
        with _start_ray(workers) as count, table:
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


@dataclass
class _Job:
    """Gives the images to the workers, and takes their rows."""

    labeller: tuple[Any, ...]  # arguments of Labeller
    workers: Workers
    count: int  # of workers
    report: LargeReport
    table: ShareTable

    def run(self, names: Sequence[str]) -> None:
        with progress(total=len(names), unit='image') as bar:
            lost = self._run(names, IMAGES_PER_TASK, bar)
            lost = self._run(lost, 1, bar)  # one bad image takes its neighbours with it
        for name in lost:
            self.report.failures[name] = f'the process that segmented it died, {ATTEMPTS} times'

    def _run(self, names: Sequence[str], images_per_task: int, bar: Any) -> list[str]:
        """Segment images; those whose process died every time are returned."""
        left = set(names)
        for batch in self._batches(names, images_per_task) if names else ():
            for row in batch.to_pylist():
                if row['image'] in left:
                    left.remove(row['image'])
                    self._take(row)
                    bar.update()
        return [name for name in names if name in left]

    def _batches(self, names: Sequence[str], images_per_task: int) -> Iterator[pa.Table]:
        import ray.data

        tasks = -(-len(names) // images_per_task)
        table = pa.table({'image': pa.array(names, pa.string())})
        count = min(self.count, tasks)
        dataset = ray.data.from_arrow(table, override_num_blocks=tasks).map_batches(
            Labeller,
            fn_constructor_args=self.labeller,
            batch_size=None,
            batch_format='pyarrow',
            # a second task waits at the worker, unless it would be lost with the first
            compute=ray.data.ActorPoolStrategy(
                size=count, max_tasks_in_flight_per_actor=2 if images_per_task > 1 else 1
            ),
            num_cpus=self.workers.threads,
            num_gpus=self.workers.num_gpus,
            max_restarts=-1,
            max_task_retries=ATTEMPTS - 1,
        )
        dataset.context.max_errored_blocks = -1  # what is lost with a process is tried again
        dataset.context.enable_progress_bars = False
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format='pyarrow')
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RuntimeError(f'Ray stopped: {reason}; continue with --resume') from error

    def _take(self, row: dict[str, Any]) -> None:
        if row['is_fatal']:
            raise OSError(f'{row["image"]}: {row["error"]}')
        if row['error'] is not None:
            self.report.failures[row['image']] = row['error']
            return
        self.report.done += 1
        self.report.pixels.update(dict(zip(self.table.classes, row['counts'], strict=True)))
        self.table.add(row)


@contextmanager
def _start_ray(workers: Workers) -> Iterator[int]:
    """Start Ray or connect to a cluster, unless the process has done so; the number of workers."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    import ray

    if ray.is_initialized():
        yield _count(workers)
        return
    options: dict[str, Any] = dict(address=workers.address)
    if workers.address is None:
        cores = workers.count or max(1, num_cores() // workers.threads)
        options = dict(
            address='local',
            num_cpus=cores * workers.threads,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
        )
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        where = f'at {workers.address}' if workers.address else 'on this machine'
        raise RuntimeError(f'Ray cannot be used {where}: {error}') from error
    try:
        yield _count(workers)
    finally:
        ray.shutdown()


def _count(workers: Workers) -> int:
    import ray

    if workers.count is not None:
        return workers.count
    return max(1, int(ray.cluster_resources().get('CPU', 1)) // workers.threads)


def num_cores() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
