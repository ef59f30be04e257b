// Draws every chart with the colours of the theme that holds now, and again when it changes.
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");

function coloured(source, style) {
  return JSON.parse(source.textContent.replace(/var\((--[\w-]+)\)/g, (_, name) =>
    style.getPropertyValue(name).trim()));
}

function drawAll() {
  const style = getComputedStyle(document.documentElement);
  for (const source of document.querySelectorAll("script[data-chart]")) {
    const place = document.getElementById(source.dataset.chart);
    if (!place.offsetParent) continue; // in a tab that is not shown: it has no width to draw in
    const {data, layout} = coloured(source, style);
    layout.font.size = narrow.matches ? 11 : 13;
    for (const label of layout.annotations ?? []) {
      label.font = {...label.font, size: narrow.matches ? 10 : 12};
      label.visible = !(narrow.matches && label.name === "cache"); // no room beside the points
    }
    Plotly.react(place, data, layout, {responsive: true, displayModeBar: false});
  }
}

// A picture of each chart for a paper: in the light theme's colours, at three times the size on the screen.
const light = [...document.styleSheets[0].cssRules].find((rule) => rule.selectorText === ":root").style;
for (const place of document.querySelectorAll(".chart")) {
  const save = document.createElement("button");
  save.type = "button";
  save.className = "save";
  save.textContent = "Save as PNG";
  save.addEventListener("click", () => {
    const {width, height} = place.getBoundingClientRect();
    const source = document.querySelector(`script[data-chart="${place.id}"]`);
    const {data, layout} = source ? coloured(source, light) : place;
    const figure = {data, layout: {...layout, paper_bgcolor: source ? "white" : "transparent"}};
    Plotly.downloadImage(figure, {format: "png", width, height, scale: 3, filename: place.id});
  });
  place.after(save);
}

// Tabs: one panel at a time, by click, arrow keys or the address's fragment. Without them all panels show.
const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab, focus) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
  drawAll();
  if (tab.id === "tab-sweep") drawSweep();
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => {
    show(tab);
    history.replaceState(null, "", `#${tab.dataset.panel}`);
  });
  tab.addEventListener("keydown", (event) => {
    const step = {ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1}[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(tabs[(step + tabs.length) % tabs.length], true);
  });
}

// Tables that can be sorted: by the value behind each cell, largest first, then the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const {value: raw} = row.cells[column].dataset;
        return raw === undefined ? row.cells[column].textContent : Number(raw);
      };
      const order = (x, y) => typeof x === "number" ? x - y : x.localeCompare(y);
      const rows = [...table.tBodies[0].rows].sort((x, y) => (down ? -1 : 1) * order(value(x), value(y)));
      table.tBodies[0].append(...rows);
    });
  }
}

function start() {
  const wanted = tabs.find((tab) => `#${tab.dataset.panel}` === location.hash);
  if (tabs.length) show(wanted ?? tabs[0]);
  else drawAll();
}

dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);
