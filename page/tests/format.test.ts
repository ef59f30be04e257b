import { describe, expect, it } from "vitest";
import { count, percent, powerOfTen, rate, seconds, span } from "../src/logic/format";

describe("quantities", () => {
  it.each([
    [0.0123, "12.3 ms"],
    [0.9999, "1.00 s"],
    [105.2, "105 s"],
    [4.1e-5, "41.0 µs"],
  ])("%d s is %s", (x, said) => expect(seconds(x)).toBe(said));

  it.each([
    [48.9, "48 s"],
    [725, "12 min"],
    [12_000, "3 h 20 min"],
    [190_800, "2 d 5 h"],
  ])("%d s of running is %s", (x, said) => expect(span(x)).toBe(said));

  it.each([
    [0, "FLOP", "0 FLOP/s"],
    [38.14e9, "FLOP", "38.1 GFLOP/s"],
    [999.9e9, "FLOP", "1.00 TFLOP/s"],
    [989e12, "FLOP", "989 TFLOP/s"],
    [21.4e9, "B", "21.4 GB/s"],
  ])("%d %s a second is %s", (x, unit, said) => expect(rate(x, unit)).toBe(said));

  it.each([
    [0, "0"],
    [12_345, "12,345"],
    [8_404_992, "8.40M"],
    [1.1e9, "1.10B"],
    [0.95, "0.950"],
    [1234.5, "1,230"],
  ])("%d things are %s", (x, said) => expect(count(x)).toBe(said));

  it.each([
    [0.1 ** 2, "0.01"],
    [1000, "1,000"],
    [1e4, "10k"],
  ])("the power of ten %d is %s", (x, said) => expect(powerOfTen(x)).toBe(said));

  it.each([
    [0, "0 %"],
    [0.032, "3.2 %"],
    [0.0996, "10 %"],
    [0.57, "57 %"],
    [1.3, "130 %"],
  ])("the share %d is %s", (x, said) => expect(percent(x)).toBe(said));
});
