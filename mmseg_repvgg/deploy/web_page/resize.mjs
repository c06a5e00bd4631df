// Resizing as OpenCV does it, so that labels are those of Python. A canvas resizes differently.

const ONE = 2048; // weights of bytes have 11 bits

/**
 * For each pixel of a resized side the pixel before it and the share of the one after it, as in
 * OpenCV's resize with INTER_LINEAR.
 *
 * @param {(place: number) => number} rounded OpenCV's own code has float32 places; that of Intel's
 *   library, which its wheels use for floats only, exact ones.
 */
function places(length, newLength, rounded) {
  const scale = 1 / (newLength / length);
  const first = new Int32Array(newLength);
  const share = new Float32Array(newLength);
  for (let i = 0; i < newLength; i++) {
    const place = rounded((i + 0.5) * scale - 0.5);
    first[i] = Math.floor(place);
    share[i] = place - first[i];
  }
  return { first, share };
}

/** Along a row OpenCV takes the outermost pixel alone at the border. */
function columnPlaces(length, newLength, rounded) {
  const { first, share } = places(length, newLength, rounded);
  for (let i = 0; i < newLength; i++) {
    if (first[i] < 0 || first[i] >= length - 1) {
      first[i] = first[i] < 0 ? 0 : length - 1;
      share[i] = 0;
    }
  }
  return { first, share };
}

/** To the nearest integer, the even one if tied: OpenCV's cvRound. */
function round(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

/** Integer weights of a pixel and the one after it. */
function weights(share) {
  const before = Int32Array.from(share, (value) => round(Math.fround(1 - value) * ONE));
  const after = Int32Array.from(share, (value) => round(value * ONE));
  return [before, after];
}

const clamp = (index, length) => Math.min(Math.max(index, 0), length - 1);

/**
 * Resize an image of bytes, bilinear with OpenCV's integer weights.
 *
 * @param {Uint8ClampedArray} pixels RGBA, row by row.
 * @returns {Uint8Array} RGB as three planes, newHeight x newWidth.
 */
export function resizeToPlanes(pixels, height, width, newHeight, newWidth) {
  const area = newHeight * newWidth;
  const planes = new Uint8Array(3 * area);
  if (height === newHeight && width === newWidth) {
    for (let c = 0; c < 3; c++) {
      for (let i = 0; i < area; i++) planes[c * area + i] = pixels[4 * i + c];
    }
    return planes;
  }
  const columns = columnPlaces(width, newWidth, Math.fround);
  const rows = places(height, newHeight, Math.fround);
  const [before, after] = weights(columns.share);
  const [upper, lower] = weights(rows.share);
  const line = (y, target) => {
    for (let x = 0; x < newWidth; x++) {
      const from = 4 * (y * width + columns.first[x]);
      const next = after[x] ? from + 4 : from;
      for (let c = 0; c < 3; c++) {
        const sum = pixels[from + c] * before[x] + pixels[next + c] * after[x];
        target[c * newWidth + x] = sum >> 4;
      }
    }
  };
  const read = cachedLines(line, height, () => new Int32Array(3 * newWidth));
  for (let y = 0; y < newHeight; y++) {
    const [above, below] = read(rows.first[y]);
    for (let c = 0; c < 3; c++) {
      const to = c * area + y * newWidth;
      for (let x = 0, i = c * newWidth; x < newWidth; x++, i++) {
        planes[to + x] = (((upper[y] * above[i]) >> 16) + ((lower[y] * below[i]) >> 16) + 2) >> 2;
      }
    }
  }
  return planes;
}

/**
 * Resize a plane of logits, bilinear as OpenCV and as PyTorch without align_corners.
 *
 * @param {Float32Array} plane Row by row.
 * @returns {Float32Array} newHeight x newWidth.
 */
export function resizePlane(plane, height, width, newHeight, newWidth) {
  const exact = (place) => place;
  const columns = columnPlaces(width, newWidth, exact);
  return interpolate(plane, height, width, columns, places(height, newHeight, exact));
}

/** As resizePlane, but as PyTorch with align_corners. */
export function resizePlaneAligned(plane, height, width, newHeight, newWidth) {
  const aligned = (length, newLength) => {
    const step = Math.fround((length - 1) / Math.max(newLength - 1, 1));
    const first = new Int32Array(newLength);
    const share = new Float32Array(newLength);
    for (let i = 0; i < newLength; i++) {
      const place = Math.fround(i * step);
      first[i] = Math.min(Math.floor(place), Math.max(length - 2, 0));
      share[i] = place - first[i];
    }
    return { first, share };
  };
  return interpolate(plane, height, width, aligned(width, newWidth), aligned(height, newHeight));
}

function interpolate(plane, height, width, columns, rows) {
  const newWidth = columns.first.length;
  const resized = new Float32Array(rows.first.length * newWidth);
  const line = (y, target) => {
    for (let x = 0; x < newWidth; x++) {
      const from = y * width + columns.first[x];
      const next = columns.share[x] > 0 ? plane[from + 1] : 0;
      target[x] = plane[from] * (1 - columns.share[x]) + next * columns.share[x];
    }
  };
  const read = cachedLines(line, height, () => new Float32Array(newWidth));
  for (let y = 0; y < rows.first.length; y++) {
    const [above, below] = read(rows.first[y]);
    const share = rows.share[y];
    for (let x = 0, to = y * newWidth; x < newWidth; x++) {
      resized[to + x] = above[x] * (1 - share) + below[x] * share;
    }
  }
  return resized;
}

/** A function that gives a resized line and the next one, and keeps the last two. */
function cachedLines(line, height, make) {
  let kept = [make(), make()];
  let numbers = [-1, -1];
  return (first) => {
    const wanted = [clamp(first, height), clamp(first + 1, height)];
    if (wanted[0] === numbers[1]) {
      kept = [kept[1], kept[0]];
      numbers = [numbers[1], numbers[0]];
    }
    for (const i of [0, 1]) {
      if (numbers[i] !== wanted[i]) line(wanted[i], kept[i]);
    }
    numbers = wanted;
    return kept;
  };
}

/**
 * Resize a label map by nearest neighbour, as OpenCV with INTER_NEAREST_EXACT, which takes either
 * of two pixels where both are equally near.
 *
 * @param {Uint16Array} labels Row by row.
 * @returns {Uint16Array} newHeight x newWidth.
 */
export function resizeNearest(labels, height, width, newHeight, newWidth) {
  const nearest = (length, newLength) =>
    Int32Array.from({ length: newLength }, (_, i) =>
      Math.floor(((2 * i + 1) * length) / (2 * newLength)),
    );
  const [rows, columns] = [nearest(height, newHeight), nearest(width, newWidth)];
  const resized = new Uint16Array(newHeight * newWidth);
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      resized[y * newWidth + x] = labels[rows[y] * width + columns[x]];
    }
  }
  return resized;
}
