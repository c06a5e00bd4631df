// One model in ONNX Runtime Web, in a worker so that the page stays responsive.
// Messages: {load: {model, info, device, threads}}, then {image: {pixels, height, width}}.

import { segment } from './segmenter.mjs';

// WebGPU needs a larger build of the runtime
const BUILDS = { wasm: 'ort.wasm.min.mjs', webgpu: 'ort.webgpu.min.mjs' };

let ort = null;
let session = null;
let info = null;

async function load({ model, info: description, device, threads }) {
  ort = await import(`./runtime/${BUILDS[device]}`);
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = 'error';
  const response = await fetch(model);
  if (!response.ok) throw new Error(`${model}: ${response.status} ${response.statusText}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  info = description;
  session = await ort.InferenceSession.create(bytes, { executionProviders: [device] });
  return {};
}

async function run(planes, height, width) {
  const images = new ort.Tensor('float32', planes, [1, 3, height, width]);
  const outputs = await session.run({ [session.inputNames[0]]: images });
  return outputs[session.outputNames[0]];
}

self.onmessage = async ({ data }) => {
  try {
    const answer = data.load
      ? await load(data.load)
      : await segment(run, info, data.image.pixels, data.image.height, data.image.width);
    self.postMessage({ answer }, answer.labels ? [answer.labels.buffer] : []);
  } catch (error) {
    // WebAssembly throws numbers and objects as well
    self.postMessage({ error: String(error?.message ?? error) });
  }
};
