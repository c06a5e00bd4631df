# ---
# jupyter:
#   jupytext:
#     comment_magics: false
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From your own images to an overlay
#
# This notebook trains a segmentation network on a small data set, merges its branches, exports it
# to ONNX, and paints the predictions over images that were not used in training. The images are
# drawn here; you can give a folder of your own instead. The commands are those of
# [docs/own-data.md](../docs/own-data.md).
#
# It needs `pip install '.[openmmlab,deploy]'` in a checkout, takes a few minutes on two CPU cores,
# and writes to the folder `work_dirs/own_data` only.

# %%
# In Colab, remove the # of the next two lines, and give the address of the repository.
# !git clone https://ADDRESS/mmseg_repvgg.git
# !pip install -q './mmseg_repvgg[openmmlab,deploy]'

# %%
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np

from mmseg_repvgg import config_path
from mmseg_repvgg.deploy.segmenter import Segmenter

# %% [markdown]
# ## Images and masks
#
# A folder of your own must have `images/train`, `images/val` (JPEG) and `masks/train`, `masks/val`
# (PNG, each pixel the id of its class), with images of one size. Write its path here, and edit the
# lines after it: [docs/own-data.md](../docs/own-data.md) explains the settings. Here the images are
# predicted as a whole, so width and height must be at most twice the crop.

# %%
own_folder = ''
work = Path('work_dirs/own_data')
work.mkdir(parents=True, exist_ok=True)
data = Path(own_folder).resolve() if own_folder else Path('shapes')
classes = ('background', 'disc', 'square', 'triangle')
palette = [[60, 60, 60], [230, 60, 60], [60, 180, 75], [60, 110, 230]]
width, height = 128, 96  # of the images in the network: multiples of 8
crop, max_iters = 64, 220  # size of the training crops: a multiple of 8, and steps

# %% [markdown]
# Without one, 24 images are drawn: two of a disc, a square and a triangle on noise, each kind in
# shades of its colour.


# %%
def draw_scene(rng, class_ids, height, width):
    """An image (height, width, 3) of two shapes on noise, and its mask (height, width)."""
    noise = rng.integers(0, 60, (height // 2, width // 2)).astype(np.uint8)
    image = cv2.cvtColor(cv2.resize(noise, (width, height)), cv2.COLOR_GRAY2BGR)
    mask = np.zeros((height, width), np.uint8)
    for class_id, x in zip(class_ids, (32, 96), strict=True):
        centre = x + int(rng.integers(-4, 5)), int(rng.integers(34, height - 34))
        radius = int(rng.integers(20, 29))
        shade = np.clip(SHADES[class_id] + rng.integers(-40, 41, 3), 0, 255).tolist()
        draw_shape(image, class_id, centre, radius, shade)
        draw_shape(mask, class_id, centre, radius, class_id)
    return image, mask


# %%
SHADES = {1: (60, 80, 200), 2: (80, 190, 90), 3: (200, 110, 60)}  # of OpenCV: blue, green, red
CORNERS = {2: [(-1, -1), (1, -1), (1, 1), (-1, 1)], 3: [(-1, 1), (0, -1), (1, 1)]}


def draw_shape(canvas, class_id, centre, radius, value):
    if class_id == 1:
        cv2.circle(canvas, centre, radius, value, -1)
    else:
        cv2.fillPoly(canvas, [np.array(CORNERS[class_id]) * radius + centre], value)


# %%
rng = np.random.default_rng(0)
for split, count in (('train', 18), ('val', 6)) if not own_folder else ():
    for kind in ('images', 'masks'):
        (work / data / kind / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        class_ids = rng.permutation([k for k in (1, 2, 3) if k != 1 + i % 3]).tolist()
        image, mask = draw_scene(rng, class_ids, height, width)
        cv2.imwrite(str(work / data / f'images/{split}/{i:02}.jpg'), image)
        cv2.imwrite(str(work / data / f'masks/{split}/{i:02}.png'), mask)

# %% [markdown]
# ## The config
#
# `own_data.py` of the package is a template: you edit the lines at its top, and all else follows
# from them.

# %%
settings = f"""
data_root = {str(data)!r}
classes = {classes}
palette = {palette}
image_scale = {width, height}
crop_size = {crop, crop}
batch_size, max_iters = 4, {max_iters}
"""
config = Path(config_path('own_data.py')).read_text()
for line in settings.strip().splitlines():
    name = line.partition(' = ')[0]
    config, count = re.subn(rf'(?m)^{name} = .*', lambda _, line=line: line, config)
    assert count == 1, name
length = (work / 'my_data.py').write_text(config)

# %% [markdown]
# ## Check the data
#
# Commands run in the folder `work`; the last lines that they print are shown.


# %%
def run(command, lines):
    """Run a command of mmseg-repvgg, and show the last lines that it prints, without the log's."""
    full = [sys.executable, '-m', 'mmseg_repvgg', *shlex.split(command)]
    done = subprocess.run(full, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{command} failed:\n{done.stdout}\n{done.stderr}')
    printed = done.stdout.replace(f'{work.resolve()}/', '').splitlines()
    print('\n'.join([line for line in printed if ' - mmengine - ' not in line][-lines:]))


run('check-data my_data.py', 16)

# %% [markdown]
# The command also draws masks over images; here are the first. Look at them: no program finds names
# in the wrong order.

# %%
sheet = plt.imread(work / 'work_dirs/my_data/data/train.png')
figure, ax = plt.subplots(figsize=(5, 1.1), layout='constrained')
ax.imshow(sheet[: len(sheet) * 3 // 10])
ax.set_axis_off()

# %% [markdown]
# ## Train

# %%
run('train my_data.py --cfg-options randomness.seed=0', 8)

# %%
scalars = max((work / 'work_dirs/my_data').glob('*/vis_data/scalars.json'))
records = [json.loads(line) for line in scalars.read_text().splitlines()]
steps, losses = zip(*((r['step'], r['loss']) for r in records if 'loss' in r), strict=True)
miou = records[-1]['mIoU']
figure, ax = plt.subplots(figsize=(5, 3), layout='constrained')
ax.plot(steps, losses)
ax.set(xlabel='step', ylabel='loss', ylim=(0, None))
print(f'mIoU of the validation images: {miou:.2f} %')

# %% [markdown]
# ## Merge the branches, and export
#
# `fuse` merges the three branches of each block into one convolution, and compares both networks.
# `export` writes the ONNX file, and compares it with PyTorch in each installed runtime.

# %%
run(f'fuse my_data.py work_dirs/my_data/iter_{max_iters}.pth my_data_fused.pth', 6)

# %%
run(f'export my_data_fused.py my_data_fused.pth my_data.onnx --size {height} {width}', 6)

# %% [markdown]
# ## Overlays
#
# `Segmenter` runs the exported file, without PyTorch or OpenMMLab's packages. Its mIoU on the
# validation images is that of the trained network:

# %%
segmenter = Segmenter(work / 'my_data.onnx', threads=1)
results, confusion = [], 0
for path in sorted((work / data / 'images/val').iterdir()):
    image = cv2.imread(str(path))
    truth = cv2.imread(str(work / data / f'masks/val/{path.stem}.png'), cv2.IMREAD_UNCHANGED)
    labels = segmenter(image)
    results.append((image, truth, labels))
    pairs = (len(classes) * truth.astype(int) + labels)[truth < len(classes)]  # without void
    confusion = confusion + np.bincount(pairs, minlength=len(classes) ** 2)
confusion = confusion.reshape(len(classes), -1)
correct = confusion.diagonal()
exported_miou = 100 * np.mean(correct / (confusion.sum(0) + confusion.sum(1) - correct))
print(f'mIoU of the exported network: {exported_miou:.2f} %')

# %% [markdown]
# From left to right: image, ground truth, prediction.

# %%
figure, axes = plt.subplots(3, 3, figsize=(4, 3), layout='constrained')
for row, (image, truth, labels) in zip(axes, results, strict=False):
    pictures = image, segmenter.overlay(image, truth), segmenter.overlay(image, labels)
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture[:, :, ::-1], interpolation='nearest')
        ax.set_axis_off()

# %% [markdown]
# ## Read on
#
# - [docs/own-data.md](../docs/own-data.md): every setting, other kinds of masks, and what to do if
#   mIoU is low
# - [docs/deploy.md](../docs/deploy.md): other runtimes, and the options of the export
# - [docs/recipes.md](../docs/recipes.md): learning rates and weight decay
# - [repvgg_in_ten_cells](repvgg_in_ten_cells.ipynb): what merging the branches is
