/**
 * The geometry of the roofline (Williams, Waterman and Patterson, 2009): memory carries at most
 * intensity x bandwidth, the units at most their peak, and the ridge is where the two meet.
 */
import type { DeviceStatus, Point } from "../api/status";
import { percent } from "./format";

/** FLOP/s that the units reach, and bytes/s that memory carries. */
export interface Roof {
  peak: number;
  bandwidth: number;
}

/** From the least to the most that an axis shows. */
export type Range = readonly [number, number];

/** What the chart shows: FLOP/byte across, FLOP/s upwards. */
export interface View {
  x: Range;
  y: Range;
}

/** Where a step stands: what would bind it at its intensity, and the share of that it reaches. */
export interface Standing {
  bound: "memory" | "compute";
  share: number;
}

/** Under this share of the roof neither memory nor compute explains a step's time. */
const FAR = 0.3;

/** The roof of a device, or null where it isn't known. */
export function roofOf(device: DeviceStatus): Roof | null {
  const { peak_flops: peak, bandwidth } = device;
  return peak && bandwidth ? { peak, bandwidth } : null;
}

/** FLOP/byte at which memory and units are equally busy. */
export function ridge({ peak, bandwidth }: Roof): number {
  return peak / bandwidth;
}

/** FLOP/s that the roof allows at an intensity in FLOP/byte. */
export function attainable({ peak, bandwidth }: Roof, intensity: number): number {
  return Math.min(peak, intensity * bandwidth);
}

export function standing(roof: Roof, { intensity, flops_per_second }: Point): Standing {
  return {
    bound: intensity < ridge(roof) ? "memory" : "compute",
    share: flops_per_second / attainable(roof, intensity),
  };
}

/** A standing in words. */
export function words({ bound, share }: Standing): string {
  const of = bound === "memory" ? "of the bandwidth" : "of the peak";
  if (share < FAR) return `far under the roof: ${percent(share)} ${of}, so overheads weigh more`;
  const cached = bound === "memory" && share > 1.005 ? ", so caches serve a part" : "";
  return `${bound}-bound: ${percent(share)} ${of}${cached}`;
}

/** A view of the roof and of all `points`, to whole decades, so that it stays as it is while they move. */
export function viewOf(roof: Roof, points: readonly Point[]): View {
  const intensities = points.map((point) => point.intensity);
  const rates = points.map((point) => point.flops_per_second);
  const corner = ridge(roof);
  const least = decadeUnder(Math.min(0.5, corner / 10, ...intensities));
  return {
    x: [least, decadeOver(Math.max(8 * corner, ...intensities))],
    y: [decadeUnder(Math.min(roof.peak / 200, ...rates)), 2.5 * Math.max(roof.peak, ...rates)],
  };
}

/** FLOP/byte at which the roof comes into a view: at its left edge, or through its bottom. */
export function start({ bandwidth }: Roof, { x, y }: View): number {
  return Math.max(x[0], y[0] / bandwidth);
}

/** From a value to its place in pixels on a logarithmic axis. */
export function logScale([least, most]: Range, [from, to]: Range): (value: number) => number {
  const slope = (to - from) / Math.log(most / least);
  return (value) => from + slope * Math.log(value / least);
}

/** The edges of the part of the chart that is drawn in, in pixels. */
export interface Frame {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** From FLOP/byte and from FLOP/s to pixels. */
export interface Axes {
  x: (intensity: number) => number;
  y: (rate: number) => number;
}

/** The axes that show `view` in `frame`. */
export function axesOf(view: View, { left, right, top, bottom }: Frame): Axes {
  return { x: logScale(view.x, [left, right]), y: logScale(view.y, [bottom, top]) };
}

/** The powers of ten in a range. */
export function decades([least, most]: Range): number[] {
  const first = Math.ceil(Math.log10(least) - 1e-9);
  const last = Math.floor(Math.log10(most) + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => 10 ** (first + i));
}

function decadeUnder(x: number): number {
  return 10 ** Math.floor(Math.log10(x) + 1e-9);
}

function decadeOver(x: number): number {
  return 10 ** Math.ceil(Math.log10(x) - 1e-9);
}
