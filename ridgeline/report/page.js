// Draws every chart with the colours of the theme that holds now, and again when it changes.
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");

function drawAll() {
  const style = getComputedStyle(document.documentElement);
  for (const source of document.querySelectorAll("script[data-chart]")) {
    const coloured = source.textContent.replace(/var\((--[\w-]+)\)/g, (_, name) =>
      style.getPropertyValue(name).trim());
    const {data, layout} = JSON.parse(coloured);
    layout.font.size = narrow.matches ? 11 : 13;
    for (const label of layout.annotations ?? []) {
      label.font = {...label.font, size: narrow.matches ? 10 : 12};
      label.visible = !(narrow.matches && label.name === "cache"); // no room beside the points
    }
    Plotly.react(source.dataset.chart, data, layout, {responsive: true, displayModeBar: false});
  }
}

drawAll();
dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);
