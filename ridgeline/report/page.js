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
    Plotly.react(source.dataset.chart, data, layout, {responsive: true, displayModeBar: false});
  }
}

drawAll();
dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);
