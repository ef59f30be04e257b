import { describe, expect, it } from "vitest";
import type { Point } from "../src/api/status";
import {
  attainable,
  axesOf,
  decades,
  logScale,
  ridge,
  roofOf,
  standing,
  start,
  viewOf,
  words,
} from "../src/logic/roofline";

const ROOF = { peak: 400e9, bandwidth: 20e9 };

function step(intensity: number, flops_per_second: number): Point {
  return { intensity, flops_per_second, rows: 1, seconds: 1, flops: flops_per_second, bytes: 1 };
}

describe("the roof", () => {
  it("rises with the bandwidth up to the ridge, and is the peak from there", () => {
    expect(ridge(ROOF)).toBe(20);
    expect(attainable(ROOF, 2)).toBe(40e9);
    expect(attainable(ROOF, 20)).toBe(400e9);
    expect(attainable(ROOF, 500)).toBe(400e9);
  });

  it("is unknown unless both of its figures are known", () => {
    const device = { name: "x", measured: true, peak_flops: 1, bandwidth: 2 };
    expect(roofOf(device)).toEqual({ peak: 1, bandwidth: 2 });
    expect(roofOf({ ...device, peak_flops: null })).toBeNull();
    expect(roofOf({ ...device, bandwidth: null })).toBeNull();
  });
});

describe("a step's standing", () => {
  it.each([
    [step(2, 24.8e9), "memory-bound: 62 % of the bandwidth"],
    [step(2, 40.1e9), "memory-bound: 100 % of the bandwidth"],
    [step(2, 52e9), "memory-bound: 130 % of the bandwidth, so caches serve a part"],
    [step(100, 300e9), "compute-bound: 75 % of the peak"],
    [step(2, 2e9), "far under the roof: 5.0 % of the bandwidth, so overheads weigh more"],
    [step(100, 4e9), "far under the roof: 1.0 % of the peak, so overheads weigh more"],
  ])("is said in words", (point, said) => {
    expect(words(standing(ROOF, point))).toBe(said);
  });
});

describe("the chart", () => {
  const points = [step(0.02, 1e6), step(7, 1e11), step(3e4, 9e11)];

  it("shows the ridge and every point", () => {
    for (const shown of [[], points]) {
      const { x, y } = viewOf(ROOF, shown);
      for (const { intensity, flops_per_second } of [step(ridge(ROOF), ROOF.peak), ...shown]) {
        expect(x[0] <= intensity && intensity < x[1]).toBe(true);
        expect(y[0] <= flops_per_second && flops_per_second < y[1]).toBe(true);
      }
    }
  });

  it("stays as it is while a point moves within it", () => {
    expect(viewOf(ROOF, [step(2, 30e9)])).toEqual(viewOf(ROOF, [step(9, 80e9), step(100, 300e9)]));
  });

  it("has a roof that comes in at the left edge, or through the bottom", () => {
    expect(start(ROOF, { x: [0.1, 1000], y: [1e9, 1e12] })).toBe(0.1);
    expect(start(ROOF, { x: [0.1, 1000], y: [10e9, 1e12] })).toBe(0.5);
  });

  it("counts pixels from the top left", () => {
    const { x, y } = axesOf({ x: [0.1, 10], y: [1e9, 1e11] }, { left: 40, right: 240, top: 20, bottom: 120 });
    expect([x(0.1), x(1), x(10)]).toEqual([40, 140, 240].map((at) => expect.closeTo(at)));
    expect([y(1e9), y(1e10), y(1e11)]).toEqual([120, 70, 20].map((at) => expect.closeTo(at)));
  });

  it("has logarithmic axes", () => {
    const place = logScale([0.1, 1000], [40, 340]);
    expect([0.1, 1, 10, 1000].map(place).map(Math.round)).toEqual([40, 115, 190, 340]);
    const upwards = logScale([1, 100], [200, 0]);
    expect(upwards(10)).toBeCloseTo(100);
  });

  it("marks the powers of ten", () => {
    expect(decades([0.1, 1000])).toEqual([0.1, 1, 10, 100, 1000].map((x) => expect.closeTo(x, 10)));
    expect(decades([2e9, 1e12])).toEqual([1e10, 1e11, 1e12]);
    expect(decades([2, 9])).toEqual([]);
  });
});
