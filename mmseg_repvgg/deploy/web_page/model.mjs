// A model of the page: its description, and the worker that runs it.

/** Read the list of models and their descriptions. */
export async function readModels() {
  const { models } = await readJson('models.json');
  return Promise.all(models.map(async (name) => new Model(name, await readJson(`models/${name}.json`))));
}

async function readJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response.json();
}

export class Model {
  constructor(file, info) {
    this.file = file;
    this.info = info;
    this.name = `${file.replace(/\.onnx$/, '')} (${info.precision})`;
    this.worker = null;
    this.device = null;
    this.reject = null; // of what is asked of the worker
  }

  /** Load the model in a worker, on the GPU if it is wanted and works. Returns a note or ''. */
  async load(device, threads) {
    // the GPU has no operators for int8: every layer would be copied to the CPU and back
    const wanted = this.info.precision === 'int8' ? 'wasm' : device;
    try {
      await this.#start(wanted, threads);
      // what WebGPU cannot do shows in the first run only
      const [height, width] = this.info.size;
      if (wanted === 'webgpu') await this.segment(new ImageData(width, height));
      return '';
    } catch (error) {
      if (wanted === 'wasm' || error.interrupted) throw error;
      await this.#start('wasm', threads);
      return `WebGPU cannot run ${this.name}, so the CPU does: ${error.message}`;
    }
  }

  async #start(device, threads) {
    this.stop();
    this.worker = new Worker('worker.mjs', { type: 'module' });
    this.device = device;
    const model = new URL(`models/${this.file}`, document.baseURI).href;
    await this.#ask({ load: { model, info: this.info, device, threads } });
  }

  /** Labels of an ImageData, and the time each step took; one call at a time. */
  segment(image) {
    const { width, height } = image;
    const pixels = image.data.slice();
    return this.#ask({ image: { pixels, height, width } }, [pixels.buffer]);
  }

  /** End the worker, whatever it does; what was asked of it fails. */
  stop() {
    this.worker?.terminate();
    this.worker = null;
    this.reject?.(Object.assign(new Error(`${this.name} was stopped`), { interrupted: true }));
  }

  #ask(message, transfer = []) {
    const { worker } = this;
    return new Promise((resolve, reject) => {
      this.reject = reject;
      worker.onmessage = ({ data }) =>
        'error' in data ? reject(new Error(data.error)) : resolve(data.answer);
      worker.onerror = (event) => reject(new Error(event.message || 'the worker could not start'));
      worker.postMessage(message, transfer);
    });
  }
}
