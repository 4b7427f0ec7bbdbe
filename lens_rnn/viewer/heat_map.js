// Draws the picture in props.value with plotly and says which cell is chosen: by a click, or by arrow keys.
let picture = null;
let shapes = []; // of the figure itself
let waiting = null;
const frame = () => element.querySelector(".heat-map");
const plot = () => element.querySelector(".plot");

async function draw() {
  picture = props.value ? JSON.parse(props.value) : null;
  if (!picture) {
    delete plot().dataset.query;
    return Plotly.purge(plot());
  }
  const { data, layout } = picture.figure;
  layout.dragmode = false; // fingers scroll the frame
  shapes = [...(layout.shapes || [])];
  layout.xaxis.ticklabeloverflow = "allow"; // else plotly measures each label, for seconds where there are hundreds
  layout.xaxis.fixedrange = layout.yaxis.fixedrange = true;
  await Plotly.newPlot(plot(), data, layout, { displayModeBar: false });
  // As the page has a <base>, plotly refers to the colours of the bar by the page's address, which is about to change.
  for (const bar of plot().querySelectorAll(".cbfill")) bar.style.fill = bar.style.fill.replace(/^url\("[^#]*/, 'url("');
  plot().on("plotly_click", ({ points }) => choose(points[0].pointNumber[0], points[0].pointNumber[1], 0));
  outline();
  plot().dataset.query = picture.query; // what is drawn now
}

// row, column: places in the picture. The page is told after `delay` milliseconds, so that a held key asks once.
function choose(row, column, delay) {
  const { query, side, first } = picture;
  picture.cell = [row, first + column];
  outline();
  document.dispatchEvent(new CustomEvent("lens-cell", { detail: side }));
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger("cell", { query, cell: `${side}.${row}.${first + column}` }), delay);
}

function outline() {
  const outlines = (picture.cell ? [picture.cell] : []).map(([row, token]) => {
    const column = token - picture.first;
    const corners = { x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5 };
    return { type: "rect", ...corners, line: { color: "#D9480F", width: 3 } };
  });
  Plotly.relayout(plot(), { shapes: [...shapes, ...outlines] });
}

function scrollTo(column) {
  const axis = plot()._fullLayout.xaxis;
  const middle = axis._offset + axis.d2p(column);
  const seen = frame();
  if (middle < seen.scrollLeft + 40 || middle > seen.scrollLeft + seen.clientWidth - 40) seen.scrollLeft = middle - seen.clientWidth / 2;
}

const STEPS = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

element.addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!picture || !step || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const cells = picture.figure.data[0].z;
  const within = (value, size) => Math.min(Math.max(value, 0), size - 1);
  const [row, column] = picture.cell ? [picture.cell[0] + step[0], picture.cell[1] - picture.first + step[1]] : [0, 0];
  choose(within(row, cells.length), within(column, cells[0].length), 150);
  scrollTo(picture.cell[1] - picture.first);
});

document.addEventListener("lens-cell", ({ detail }) => {
  if (!picture || !picture.cell || picture.side === detail) return;
  picture.cell = null;
  outline();
});

watch("value", draw);
if (props.value) draw();
