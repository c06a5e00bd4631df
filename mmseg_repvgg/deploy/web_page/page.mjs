// The page: what the visitor chooses, the pictures and the legend.

import {
  agreementOf,
  coloursOf,
  fillLegend,
  paintDifferences,
  paintLabels,
  percent,
  sharesOf,
} from './drawing.mjs';
import { readModels } from './model.mjs';

const MOST_THREADS = 4; // more seldom help, and all have to be started
const KEPT_TIMES = 30; // frames of the camera

const element = (id) => document.getElementById(id);
const settings = ['model', 'other', 'device', 'threads', 'show', 'opacity'].reduce(
  (found, id) => ({ ...found, [id]: element(id) }),
  {},
);

let models = [];
let views = []; // one for each model that runs
let frame = null; // ImageData
let results = []; // one for each view
let chosen = null; // the class shown alone
let stream = null; // of the camera
let job = Promise.resolve(); // what is done, one after the other

/** Do something after all that was asked for before. */
function queue(task) {
  job = job.then(task).then(
    () => true,
    (error) => {
      if (error.interrupted) return true; // by a choice, which is done next
      console.error(error);
      say('');
      element('error').textContent = error.message;
      element('error').hidden = false;
      return false;
    },
  );
  return job;
}

function say(text) {
  element('status').textContent = text;
}

/** Show what the visitor should know, in place of earlier notes. */
function showNotes(notes) {
  const items = notes.filter(Boolean).map((text) => {
    const item = document.createElement('li');
    item.textContent = text;
    return item;
  });
  element('notes').replaceChildren(...items);
  element('notes').hidden = !items.length;
}

function noteOnThreads() {
  if (!globalThis.isSecureContext) {
    return 'One thread and no camera: browsers allow both only over https, or on localhost.';
  }
  if (globalThis.crossOriginIsolated) return '';
  return 'One thread: the server does not send the headers for more (COOP and COEP; see docs/web.md).';
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => new Option(text, key, false, key === value)));
}

async function start() {
  models = await readModels();
  if (!models.length) throw new Error('models.json names no model: export one into this folder');
  document.title = `Segmentation: ${models[0].name}`;
  const named = models.map((model, index) => [String(index), model.name]);
  fillSelect(settings.model, named, '0');
  fillSelect(settings.other, [['', 'nothing'], ...named], models.length > 1 ? '1' : '');
  for (const part of document.querySelectorAll('.several')) part.hidden = models.length < 2;
  const gpu = Boolean(await navigator.gpu?.requestAdapter());
  const devices = [['wasm', 'CPU'], ...(gpu ? [['webgpu', 'GPU']] : [])];
  fillSelect(settings.device, devices, 'wasm');
  const most = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const counts = Array.from({ length: most }, (_, i) => [String(i + 1), String(i + 1)]);
  fillSelect(settings.threads, counts, String(Math.min(most, MOST_THREADS)));
  await loadModels();
}

/** Load what is chosen, and show a view for each. */
async function loadModels() {
  const indices = [settings.model.value, settings.other.value].filter((index) => index !== '');
  const wanted = [...new Set(indices)].map((index) => models[index]);
  for (const model of models) model.stop();
  results = [];
  for (const part of document.querySelectorAll('.both')) part.hidden = wanted.length < 2;
  if (wanted.length < 2) settings.show.value = 'classes';
  say('Loading the model ...');
  const notes = [noteOnThreads()];
  for (const model of wanted) {
    notes.push(await model.load(settings.device.value, Number(settings.threads.value)));
    showNotes(notes);
  }
  views = wanted.map(makeView);
  element('views').replaceChildren(...views.map((view) => view.figure));
  element('views').hidden = true;
  say('Ready.');
}

function makeView(model) {
  const figure = document.createElement('figure');
  figure.innerHTML = `<div class="stack"><canvas></canvas><canvas></canvas></div>
    <figcaption><span class="pointed"></span><strong></strong> <span class="time"></span></figcaption>`;
  figure.querySelector('strong').textContent = model.name;
  const [image, colours] = figure.querySelectorAll('canvas');
  image.setAttribute('aria-hidden', 'true');
  colours.setAttribute('role', 'img');
  colours.setAttribute('aria-label', `Classes by ${model.name}; the legend has their shares`);
  const view = { model, figure, image, colours, times: [] };
  colours.addEventListener('pointermove', (event) => namePixel(view, event));
  colours.addEventListener('pointerleave', () => namePixel(view, null));
  return view;
}

/** Write the class under the pointer. */
function namePixel(view, event) {
  const result = results[views.indexOf(view)];
  let text = '';
  if (event && result) {
    const box = view.colours.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * view.colours.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * view.colours.height);
    text = view.model.info.classes[result.labels[y * view.colours.width + x]] ?? '';
  }
  view.figure.querySelector('.pointed').textContent = text;
}

/** Segment the frame by every model that is shown, one after the other. */
async function segmentFrame() {
  if (!frame) return;
  element('error').hidden = true;
  if (!stream) say('Segmenting ...');
  const found = [];
  for (const { model } of views) found.push(await model.segment(frame));
  results = found;
  views.forEach((view, index) => {
    const canvas = view.image;
    for (const layer of [canvas, view.colours]) {
      if (layer.width !== frame.width) layer.width = frame.width;
      if (layer.height !== frame.height) layer.height = frame.height;
    }
    canvas.getContext('2d').putImageData(frame, 0, 0);
    showTime(view, results[index].milliseconds);
  });
  element('drop').classList.remove('empty');
  element('views').hidden = false;
  draw();
  say(stream ? 'Segmenting the camera.' : `Segmented ${frame.width} x ${frame.height} pixels.`);
}

function showTime(view, { total, network }) {
  view.times = [...view.times, total].slice(stream ? -KEPT_TIMES : -1);
  const median = [...view.times].sort((one, two) => one - two)[Math.floor(view.times.length / 2)];
  const where = view.model.device === 'webgpu' ? 'GPU' : `CPU, threads: ${settings.threads.value}`;
  const text = `${median.toFixed(0)} ms a frame (network ${network.toFixed(0)} ms; ${where})`;
  view.figure.querySelector('.time').textContent = text;
}

/** Draw the results as the settings want it. */
function draw() {
  element('opacity-text').textContent = `${settings.opacity.value} %`;
  const different = settings.show.value === 'differences' && results.length > 1;
  views.forEach((view, index) => {
    view.colours.style.opacity = settings.opacity.value / 100;
    if (!results[index]) return;
    const { labels } = results[index];
    if (different) paintDifferences(view.colours, labels, results[1 - index].labels);
    else paintLabels(view.colours, labels, coloursOf(view.model.info), chosen);
  });
  element('agreement').hidden = results.length < 2;
  if (results.length > 1) {
    const share = agreementOf(results[0].labels, results[1].labels);
    element('agreement').textContent = `The two models agree on ${(100 * share).toFixed(2)} % of the pixels.`;
  }
  if (results.length) drawLegend();
}

function drawLegend() {
  const { info } = views[0].model;
  const columns = views.map((view, index) => ({
    name: view.model.info.precision,
    shares: sharesOf(results[index].labels, info.classes.length),
  }));
  fillLegend(element('legend'), info, columns, chosen, (index) => {
    chosen = chosen === index ? null : index;
    draw();
  });
  const absent = info.classes.filter((_, index) => columns.every((c) => c.shares[index] === 0));
  element('absent').textContent = absent.length ? `Not in the picture: ${absent.join(', ')}.` : '';
  element('legend-section').hidden = false;
}

/** The pixels of anything that can be drawn. */
function pixelsOf(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

async function openFile(file) {
  stopCamera();
  // as in training: the orientation is applied, colours are not converted
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' }).catch(() => {
    throw new Error(`${file.name || 'it'} is not an image that this browser reads`);
  });
  frame = pixelsOf(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  await segmentFrame();
}

async function startCamera() {
  if (!navigator.mediaDevices) throw new Error('the camera needs https, or localhost');
  const video = { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: 'environment' };
  stream = await navigator.mediaDevices.getUserMedia({ video }).catch((error) => {
    throw new Error(`the camera cannot be used: ${error.message}`);
  });
  const player = element('video');
  player.srcObject = stream;
  await player.play();
  element('camera').textContent = 'Stop the camera';
  element('camera').setAttribute('aria-pressed', 'true');
  for (const view of views) view.times = [];
  nextFrame(stream);
}

/** Segment frames of a camera until it is stopped. */
async function nextFrame(camera) {
  const player = element('video');
  let works = true;
  while (works && stream === camera) {
    await new Promise(requestAnimationFrame);
    works = await queue(async () => {
      if (stream !== camera || !player.videoWidth) return;
      frame = pixelsOf(player, player.videoWidth, player.videoHeight);
      await segmentFrame();
    });
  }
  if (stream === camera) stopCamera();
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  element('video').srcObject = null;
  element('camera').textContent = 'Start the camera';
  element('camera').setAttribute('aria-pressed', 'false');
  say('');
}

function listen() {
  const reload = () => {
    for (const model of models) model.stop(); // whatever it does, perhaps for ever
    queue(async () => {
      element('error').hidden = true;
      await loadModels();
      await segmentFrame();
    });
  };
  for (const id of ['model', 'other', 'device', 'threads']) settings[id].addEventListener('change', reload);
  for (const id of ['show', 'opacity']) settings[id].addEventListener('input', draw);
  const open = (file) => file && queue(() => openFile(file));
  element('file').addEventListener('change', (event) => open(event.target.files[0]));
  element('camera').addEventListener('click', () => {
    if (stream) stopCamera();
    else queue(startCamera);
  });
  const drop = element('drop');
  const over = (event) => {
    event.preventDefault();
    drop.classList.toggle('over', event.type === 'dragover');
  };
  for (const type of ['dragover', 'dragleave', 'drop']) document.addEventListener(type, over);
  document.addEventListener('drop', (event) => open(event.dataTransfer.files[0]));
}

element('drop').classList.add('empty');
listen();
queue(start);

/** For scripts and tests: the label maps that are shown, and when all is done. */
globalThis.segmentation = {
  get results() {
    return views.map((view, index) => ({ name: view.model.name, ...results[index] }));
  },
  get done() {
    return job;
  },
};
