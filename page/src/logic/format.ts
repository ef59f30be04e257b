/**
 * Quantities as short strings: three significant digits and a decimal prefix that fits, as the command line
 * writes them.
 */

const PREFIXES = ["", "k", "M", "G", "T", "P", "E"];
const COUNTS: [number, string][] = [
  [1e12, "T"],
  [1e9, "B"],
  [1e6, "M"],
];

/** A duration in seconds: `12.3 ms`, `1.05 s`. */
export function seconds(x: number): string {
  const rounded = round(x);
  if (rounded >= 1) return `${digits(rounded)} s`;
  if (rounded >= 1e-3) return `${digits(rounded * 1e3)} ms`;
  return `${digits(rounded * 1e6)} µs`;
}

/** How long something has been running: `48 s`, `12 min`, `3 h 20 min`, `2 d 5 h`. */
export function span(x: number): string {
  const minutes = Math.floor(x / 60);
  const hours = Math.floor(minutes / 60);
  if (minutes < 1) return `${Math.floor(x)} s`;
  if (hours < 1) return `${minutes} min`;
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Units a second: `38.1 GFLOP/s` of FLOP, `21.4 GB/s` of B. */
export function rate(x: number, unit: string): string {
  const rounded = round(x);
  const power = rounded > 0 ? Math.floor(Math.log10(rounded) / 3 + 1e-9) : 0;
  const prefix = Math.min(Math.max(power, 0), PREFIXES.length - 1);
  return `${digits(rounded / 1000 ** prefix)} ${PREFIXES[prefix]}${unit}/s`;
}

/** A number of things: `512`, `12,345`, `1.10B` (billion), `0.950`. */
export function count(x: number): string {
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return whole(x);
  const rounded = round(x);
  const [scale, unit] = COUNTS.find(([least]) => rounded >= least) ?? [1, ""];
  return digits(rounded / scale) + unit;
}

/** A power of ten beside an axis: `0.01`, `1,000`, `10k`. */
export function powerOfTen(x: number): string {
  const exact = Number(x.toPrecision(1));
  return exact < 1e4 ? exact.toLocaleString("en-US") : `${whole(exact / 1e3)}k`;
}

/** A share: `3.2 %`, `57 %`. */
export function percent(x: number): string {
  const value = 100 * x;
  return value > 0 && value < 9.95 ? `${value.toFixed(1)} %` : `${whole(Math.round(value))} %`;
}

/** To three significant digits, before the unit is chosen: 999.9 ms is 1.00 s. */
function round(x: number): number {
  return Number(x.toPrecision(3));
}

function digits(x: number): string {
  if (x === 0) return "0";
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x)) + 1e-9));
  return decimals > 0 ? x.toFixed(decimals) : whole(Math.round(x));
}

function whole(x: number): string {
  return x.toLocaleString("en-US");
}
