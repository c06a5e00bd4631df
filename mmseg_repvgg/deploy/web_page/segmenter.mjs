// Label maps from an exported model, step by step as in deploy/segmenter.py, deploy/images.py and
// deploy/tiling.py. Runs in a browser's worker and in Node; the network is a function.

import { resizeNearest, resizePlane, resizePlaneAligned, resizeToPlanes } from './resize.mjs';

const SMALLEST_OF_ANY = 64; // pixels, as in model_description.py

/**
 * Label every pixel of an image.
 *
 * @param {(planes: Float32Array, height: number, width: number) =>
 *   Promise<{data: ArrayLike<number>, dims: number[]}>} run The network, for one image.
 * @param {object} info The description of the model, as in its .json.
 * @param {Uint8ClampedArray} pixels RGBA, row by row.
 * @param {number} height Of the image.
 * @param {number} width Of the image.
 * @returns {Promise<{labels: Uint8Array | Uint16Array, milliseconds: object}>} Indices into
 *   info.classes, and how long each step took.
 */
export async function segment(run, info, pixels, height, width) {
  const start = performance.now();
  let inNetwork = 0;
  const timed = async (planes, rows, columns) => {
    const before = performance.now();
    const output = await run(planes, rows, columns);
    inNetwork += performance.now() - before;
    checkDims(output.dims, info, rows, columns);
    return output.data;
  };
  const [rows, columns] = preparedSize(info, height, width);
  const windows = fitWindows(info, rows, columns);
  const planes = normalize(resizeToPlanes(pixels, height, width, rows, columns), info);
  const output = windows
    ? await meanLogits(timed, info, planes, rows, columns, ...windows)
    : await timed(planes, rows, columns);
  const labels = labelsOfSize(output, info, rows, columns, height, width);
  const total = performance.now() - start;
  return { labels, milliseconds: { total, network: inNetwork } };
}

/** Height and width at which the network sees an image, whole or in windows. */
export function preparedSize(info, height, width) {
  if (!info.stride && !info.dynamic_size) return info.size;
  if (!info.resize) return [height, width];
  const [wide, high] = info.resize;
  if (!info.keep_ratio) return [high, wide];
  const factor = Math.min(
    Math.max(wide, high) / Math.max(height, width),
    Math.min(wide, high) / Math.min(height, width),
  );
  return [Math.trunc(height * factor + 0.5), Math.trunc(width * factor + 0.5)];
}

/** Size and stride of the windows on a resized image, or null if the network sees it whole. */
function fitWindows(info, height, width) {
  let { size, stride } = info;
  if (info.dynamic_size) {
    if (Math.min(height, width) < SMALLEST_OF_ANY) {
      throw new Error(
        `the image of ${height}x${width} pixels is smaller than 64x64, the smallest that the model takes`,
      );
    }
    size = [Math.min(height, size[0]), Math.min(width, size[1])];
    stride = stride && [Math.min(size[0], stride[0]), Math.min(size[1], stride[1])];
  } else if (stride && (height < size[0] || width < size[1])) {
    throw new Error(
      `the image of ${height}x${width} pixels is smaller than the windows of the model, ${size[0]}x${size[1]}`,
    );
  }
  return stride && [size, stride];
}

/** RGB planes of bytes -> float32 planes as the network takes them. */
function normalize(planes, info) {
  const length = planes.length / 3;
  const normalized = new Float32Array(planes.length);
  const order = info.to_rgb && !info.preprocessing_inside ? [0, 1, 2] : [2, 1, 0];
  order.forEach((source, target) => {
    // float32 at every step, as in NumPy
    const values = Float32Array.from({ length: 256 }, (_, value) => value);
    if (!info.preprocessing_inside) {
      const mean = Math.fround(info.mean[target]);
      const std = Math.fround(info.std[target]);
      values.forEach((value, i) => (values[i] = Math.fround(value - mean) / std));
    }
    for (let i = 0; i < length; i++) {
      normalized[target * length + i] = values[planes[source * length + i]];
    }
  });
  return normalized;
}

/** Average the logits of all windows that cover a pixel. */
async function meanLogits(run, info, planes, height, width, size, stride) {
  const [rows, columns] = size;
  const sums = new Float32Array(numOutputs(info) * height * width);
  const times = new Float32Array(height * width);
  for (const top of windowStarts(height, rows, stride[0])) {
    for (const left of windowStarts(width, columns, stride[1])) {
      const logits = await run(crop(planes, height, width, top, left, size), rows, columns);
      for (let y = 0; y < rows; y++) {
        const target = (top + y) * width + left;
        for (let x = 0; x < columns; x++) times[target + x] += 1;
        for (let k = 0; k < numOutputs(info); k++) {
          const from = (k * rows + y) * columns;
          const to = k * height * width + target;
          for (let x = 0; x < columns; x++) sums[to + x] += logits[from + x];
        }
      }
    }
  }
  for (let i = 0; i < sums.length; i++) sums[i] /= times[i % times.length];
  return sums;
}

/** First pixels of the windows along one side; the last window ends at the border. */
function windowStarts(length, window, stride) {
  const count = Math.ceil((length - window) / stride) + 1;
  return Array.from({ length: count }, (_, index) => Math.min(index * stride, length - window));
}

function crop(planes, height, width, top, left, [rows, columns]) {
  const window = new Float32Array(3 * rows * columns);
  for (let line = 0; line < 3 * rows; line++) {
    const plane = Math.floor(line / rows);
    const from = (plane * height + top + (line % rows)) * width + left;
    window.set(planes.subarray(from, from + columns), line * columns);
  }
  return window;
}

/** Labels of the image's size, of logits or labels of the size the network saw. */
function labelsOfSize(output, info, rows, columns, height, width) {
  const labels = new (info.classes.length <= 256 ? Uint8Array : Uint16Array)(height * width);
  const same = rows === height && columns === width;
  if (info.argmax_inside) {
    // integers of 64 bits come as BigInt
    const indices = Uint16Array.from(output, Number);
    labels.set(same ? indices : resizeNearest(indices, rows, columns, height, width));
    return labels;
  }
  const resize = info.align_corners ? resizePlaneAligned : resizePlane;
  const area = rows * columns;
  const best = new Float32Array(labels.length);
  for (let k = 0; k < numOutputs(info); k++) {
    const logits = output.subarray(k * area, (k + 1) * area);
    const plane = same ? logits : resize(logits, rows, columns, height, width);
    if (info.threshold !== null) {
      const limit = Math.fround(logit(info.threshold));
      for (let i = 0; i < labels.length; i++) labels[i] = plane[i] > limit ? 1 : 0;
    } else if (k === 0) {
      best.set(plane);
    } else {
      for (let i = 0; i < labels.length; i++) {
        if (plane[i] > best[i]) {
          best[i] = plane[i];
          labels[i] = k;
        }
      }
    }
  }
  return labels;
}

function numOutputs(info) {
  return info.threshold === null ? info.classes.length : 1;
}

/** The inverse of the sigmoid. */
function logit(share) {
  if (share <= 0) return -Infinity;
  return share >= 1 ? Infinity : Math.log(share / (1 - share));
}

function checkDims(dims, info, height, width) {
  const wanted = [1, ...(info.argmax_inside ? [] : [numOutputs(info)]), height, width];
  if (dims.length !== wanted.length || wanted.some((length, i) => dims[i] !== length)) {
    throw new Error(
      `the network returns (${dims.join(', ')}), but its .json says (${wanted.join(', ')}): export it again`,
    );
  }
}
