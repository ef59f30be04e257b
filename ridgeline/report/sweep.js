// The sliders: looks up the step that they stand at, and draws it.
const sweep = JSON.parse(document.getElementById("sweep-data")?.textContent ?? "null");

function amount(value, unit) {
  const prefixes = [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1], ["m", 1e-3], ["µ", 1e-6], ["n", 1e-9]];
  const [prefix, scale] = prefixes.find(([, s]) => Math.abs(value) >= s) ?? ["", 1];
  return [(value / scale).toPrecision(3).replace(/e\+?(\d+)/, "e$1"), prefix + unit];
}

function card(label, value, unit, note) {
  const [digits, scaled] = amount(value, unit);
  const entry = document.createElement("div");
  for (const [tag, text, kind] of [["dt", label], ["dd", digits, "value"], ["dd", note]]) {
    const element = document.createElement(tag);
    element.textContent = text;
    if (kind) {
      element.className = kind;
      const small = document.createElement("small");
      small.textContent = ` ${scaled}`;
      element.append(small);
    }
    entry.append(element);
  }
  return entry;
}

function drawSweep() {
  if (!sweep) return;
  const at = (name) => Number(document.getElementById(`sweep-${name}`).value);
  const [b, c, f] = [at("batch"), at("context"), at("bits")];
  for (const name of ["batch", "context", "bits"]) {
    document.getElementById(`sweep-${name}-value`).textContent = sweep.labels[name][at(name)].toLocaleString("en");
  }
  const format = sweep.formats[f];
  const [batch, context] = [sweep.batches[b], sweep.contexts[c]];
  const cards = [];
  for (const [name, phase] of Object.entries(format.phases)) {
    const seconds = phase.seconds[b][c];
    const tokens = name === "decode" ? batch : batch * context;
    const [bound, took] = Object.entries(phase.by_bound).map(([n, g]) => [n, g[b][c]]).sort((x, y) => y[1] - x[1])[0];
    const share = `${Math.round(100 * took / seconds)} % bound by ${sweep.bounds[bound] ?? bound}`;
    cards.push(card(name === "decode" ? "Time of a token" : `Time of ${name}`, seconds, "s", share));
    cards.push(card(`Tokens a second, ${name}`, tokens / seconds, "", `${tokens.toLocaleString("en")} a step`));
  }
  const memory = format.memory_bytes[b][c];
  const used = Math.round(100 * memory / sweep.device_bytes);
  cards.push(card("Memory", memory, "B", used > 100 ? `does not fit, ${used} % of the device` : `${used} % of the device`));
  document.getElementById("sweep-cards").replaceChildren(...cards);
  drawSweepCharts(format, b, c);
}

function drawSweepCharts(format, b, c) {
  const paint = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const axis = {gridcolor: paint("grid"), linecolor: paint("line"), zerolinecolor: paint("line"), automargin: true};
  const layout = {
    font: {color: paint("text"), size: narrow.matches ? 11 : 13}, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 8, r: 12, t: 8, b: 8}, autosize: true, height: 230, dragmode: false, showlegend: false,
  };
  const phases = Object.entries(format.phases);
  const classes = [...new Set(phases.flatMap(([, p]) => Object.keys(p.by_class)))];
  const bars = classes.map((name) => {
    const shares = phases.map(([, p]) => (p.by_class[name]?.[b][c] ?? 0) / p.seconds[b][c]);
    return {
      type: "bar", orientation: "h", name, y: phases.map(([n]) => n), x: shares,
      marker: {color: paint(sweep.paints[name])},
      hovertext: shares.map((s) => `${name} ${(100 * s).toFixed(1)} %`), hoverinfo: "text",
      text: shares.map((s) => s > 0.12 ? name : ""), textposition: "inside", textangle: 0,
      insidetextfont: {color: paint(`on-${sweep.paints[name]}`)},
    };
  });
  Plotly.react("sweep-time", bars, {
    ...layout, barmode: "stack", xaxis: {...axis, range: [0, 1], tickformat: ".0%", title: {text: "share of the time"}},
    yaxis: {...axis, autorange: "reversed"},
  }, {responsive: true, displayModeBar: false});
  const phase = format.phases.decode ?? phases[0][1];
  const rows = sweep.batches.map((batch) => format.phases.decode ? batch : batch * sweep.contexts[c]);
  const times = sweep.batches.map((_, i) => 1e3 * phase.seconds[i][c]);
  const rates = rows.map((n, i) => 1e3 * n / times[i]);
  const colour = paint(format.phases.decode ? "decode" : "prefill");
  Plotly.react("sweep-batches", [
    {x: times, y: rates, mode: "lines+markers", line: {color: colour}, hoverinfo: "text",
     hovertext: sweep.batches.map((n, i) => `batch ${n}: ${times[i].toPrecision(3)} ms, ${Math.round(rates[i]).toLocaleString("en")} tokens/s`)},
    {x: [times[b]], y: [rates[b]], mode: "markers", marker: {size: 14, color: colour}, hoverinfo: "skip"},
  ], {
    ...layout, xaxis: {...axis, type: "log", title: {text: "ms a step"}}, yaxis: {...axis, type: "log", title: {text: "tokens/s"}},
  }, {responsive: true, displayModeBar: false});
}

for (const name of sweep ? ["batch", "context", "bits"] : []) {
  document.getElementById(`sweep-${name}`).addEventListener("input", drawSweep);
}
dark.addEventListener("change", drawSweep);
narrow.addEventListener("change", drawSweep);
