// Colours, label maps and the legend as they are shown.

// Okabe and Ito (2008): told apart with every kind of colour vision
const SAFE = ['#0072b2', '#e69f00', '#009e73', '#d55e00', '#56b4e9', '#cc79a7', '#f0e442', '#000000'];
const DIFFERENT = [255, 0, 220, 255];
const VEIL = [20, 20, 20, 200];

/** The colour of each class: the model's own, or some if it has none. */
export function coloursOf(info) {
  if (info.palette.length) return info.palette;
  return info.classes.map((_, index) => {
    const hex = SAFE[index % SAFE.length];
    const factor = 1 / (1 + Math.floor(index / SAFE.length) / 2);
    return [1, 3, 5].map((at) => Math.round(parseInt(hex.slice(at, at + 2), 16) * factor));
  });
}

/** Paint labels; with a chosen class the others are dark. */
export function paintLabels(canvas, labels, colours, chosen) {
  const paints = colours.map((colour, index) =>
    chosen === null || chosen === index ? [...colour, 255] : VEIL,
  );
  const words = new Uint32Array(Uint8ClampedArray.from(paints.flat()).buffer);
  paint(canvas, (image) => labels.forEach((label, i) => (image[i] = words[label])));
}

/** Paint the pixels where two label maps differ. */
export function paintDifferences(canvas, labels, others) {
  const [word] = new Uint32Array(Uint8ClampedArray.from(DIFFERENT).buffer);
  paint(canvas, (image) => labels.forEach((label, i) => (image[i] = label === others[i] ? 0 : word)));
}

/** Fill a canvas; the function gets its pixels as words of RGBA, transparent at first. */
function paint(canvas, fill) {
  const image = new ImageData(canvas.width, canvas.height);
  fill(new Uint32Array(image.data.buffer));
  canvas.getContext('2d').putImageData(image, 0, 0);
}

/** The share of each class in a label map. */
export function sharesOf(labels, count) {
  const pixels = new Array(count).fill(0);
  for (const label of labels) pixels[label] += 1;
  return pixels.map((number) => number / labels.length);
}

/** The share of pixels that are equal in two label maps. */
export function agreementOf(labels, others) {
  let equal = 0;
  for (let i = 0; i < labels.length; i++) equal += labels[i] === others[i] ? 1 : 0;
  return equal / labels.length;
}

export function percent(share) {
  if (share > 0 && share < 0.001) return '< 0.1 %';
  return `${(100 * share).toFixed(1)} %`;
}

/**
 * Fill the legend: a row for each class in the picture.
 *
 * @param {HTMLTableElement} table With a head and a body.
 * @param {object} info The description of the model.
 * @param {{name: string, shares: number[]}[]} columns One for each model.
 * @param {number | null} chosen The class that is shown alone.
 * @param {(index: number) => void} choose Called with the class that is clicked.
 */
export function fillLegend(table, info, columns, chosen, choose) {
  const colours = coloursOf(info);
  const head = document.createElement('tr');
  for (const text of ['Class', ...(columns.length > 1 ? columns.map((c) => c.name) : ['Share'])]) {
    const cell = document.createElement('th');
    cell.scope = 'col';
    cell.textContent = text;
    head.append(cell);
  }
  const shown = info.classes
    .map((_, index) => index)
    .filter((index) => index === chosen || columns.some((column) => column.shares[index] > 0));
  const focused = document.activeElement?.dataset?.index;
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(
    ...shown.map((index) => legendRow(info, colours, columns, index, chosen, choose)),
  );
  // the row with the keyboard's focus was replaced
  if (focused) table.querySelector(`button[data-index="${focused}"]`)?.focus();
}

function legendRow(info, colours, columns, index, chosen, choose) {
  const row = document.createElement('tr');
  const name = document.createElement('th');
  name.scope = 'row';
  const button = document.createElement('button');
  button.type = 'button';
  button.dataset.index = index;
  button.setAttribute('aria-pressed', String(index === chosen));
  button.addEventListener('click', () => choose(index));
  const swatch = document.createElement('span');
  swatch.className = 'swatch';
  swatch.style.backgroundColor = `rgb(${colours[index].join(' ')})`;
  button.append(swatch, info.classes[index]);
  name.append(button);
  row.append(name);
  for (const { shares } of columns) {
    const cell = document.createElement('td');
    const bar = document.createElement('span');
    bar.className = 'bar';
    bar.style.width = `${100 * shares[index]}%`;
    cell.append(bar, percent(shares[index]));
    row.append(cell);
  }
  return row;
}
