// Runs the page's own code in Node: cases as JSON from stdin, results as JSON to stdout.

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const folder = `${pathToFileURL(process.argv[2]).href}/`;
const { segment } = await import(new URL('segmenter.mjs', folder));
const resizing = await import(new URL('resize.mjs', folder));

const bytes = (text) => new Uint8ClampedArray(Buffer.from(text, 'base64'));
const encode = (array) =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString('base64');

// The networks of test_web_page.py.
const NETWORKS = {
  scaled: (planes, height, width) => {
    const area = height * width;
    const data = planes.map((value, i) => value * [1, 1.013, 0.991][Math.floor(i / area)]);
    return { data, dims: [1, 3, height, width] };
  },
  by_place: (planes, height, width) => {
    const area = height * width;
    const data = planes.map((value, i) => {
      const place = i % area;
      return value + [1.3 * (place % width), 2.1 * Math.floor(place / width), 20][Math.floor(i / area)];
    });
    return { data, dims: [1, 3, height, width] };
  },
  one_logit: (planes, height, width) => ({
    data: planes.slice(0, height * width),
    dims: [1, 1, height, width],
  }),
  labels: (planes, height, width) => {
    const area = height * width;
    const data = BigInt64Array.from({ length: area }, (_, i) =>
      BigInt(planes[i] > planes[area + i] ? 0 : planes[2 * area + i] > 99 ? 2 : 1),
    );
    return { data, dims: [1, height, width] };
  },
};

async function answer({ kind, network, info, pixels, from, to }) {
  if (kind === 'bytes') return encode(resizing.resizeToPlanes(bytes(pixels), ...from, ...to));
  if (kind !== 'labels') {
    const floats = new Float32Array(bytes(pixels).buffer);
    return encode(resizing[kind](floats, ...from, ...to));
  }
  try {
    const run = async (...image) => NETWORKS[network](...image);
    return encode((await segment(run, info, bytes(pixels), ...from)).labels);
  } catch (error) {
    return { error: error.message };
  }
}

const answers = [];
for (const one of JSON.parse(readFileSync(0, 'utf8'))) answers.push(await answer(one));
process.stdout.write(JSON.stringify(answers));
