// Draws the matrix in props.value with plotly and says what one cell holds: the one that is clicked, or reached by arrow keys.
let picture = null;
let cell = null; // row, column
const plot = () => element.querySelector(".plot");
const said = () => element.querySelector(".said");

async function draw() {
  picture = props.value ? JSON.parse(props.value) : null;
  cell = null;
  said().textContent = "";
  if (!picture) {
    delete plot().dataset.query;
    return Plotly.purge(plot());
  }
  const { data, layout } = picture.figure;
  layout.dragmode = false; // fingers scroll the frame
  layout.xaxis.fixedrange = layout.yaxis.fixedrange = true;
  await Plotly.newPlot(plot(), data, layout, { displayModeBar: false });
  // As the page has a <base>, plotly refers to the colours of the bar by the page's address, which is about to change.
  for (const bar of plot().querySelectorAll(".cbfill")) bar.style.fill = bar.style.fill.replace(/^url\("[^#]*/, 'url("');
  plot().on("plotly_click", ({ points }) => choose(...points[0].pointNumber));
  plot().dataset.query = picture.query; // what is drawn now
}

async function choose(row, column) {
  cell = [row, column];
  const { names, figure } = picture;
  const share = figure.data[0].customdata[row][column];
  said().textContent = `Token ${row}, ${names[row]}, reads token ${column}, ${names[column]}: share ${share.toFixed(4)}`;
  const corners = { x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5 };
  await Plotly.relayout(plot(), { shapes: [{ type: "rect", ...corners, line: { color: "#D9480F", width: 3 } }] });
  plot().querySelector(".shapelayer path").scrollIntoView({ block: "nearest", inline: "nearest" });
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

element.addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!picture || !step || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const within = (value, most) => Math.min(Math.max(value, 0), most);
  const last = picture.names.length - 1;
  const row = cell ? within(cell[0] + step[0], last) : last;
  choose(row, cell ? within(cell[1] + step[1], row) : last); // a token reads none that comes later
});

watch("value", draw);
if (props.value) draw();
