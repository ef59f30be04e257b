import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Gatherer, PERIOD } from "../src/logic/gather";

describe("text that is gathered", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it("is handed on once in a period, all of it and in order", () => {
    const written: string[] = [];
    const gatherer = new Gatherer((text) => written.push(text));
    for (const text of ["a", "b", "c"]) gatherer.add(text);
    expect(written).toEqual([]);
    vi.advanceTimersByTime(PERIOD);
    expect(written).toEqual(["abc"]);
    gatherer.add("d");
    vi.advanceTimersByTime(PERIOD - 1);
    gatherer.add("e");
    vi.advanceTimersByTime(1);
    expect(written).toEqual(["abc", "de"]);
  });

  it("is handed on at the end, once", () => {
    const written: string[] = [];
    const gatherer = new Gatherer((text) => written.push(text));
    gatherer.add("a");
    gatherer.flush();
    gatherer.flush();
    vi.advanceTimersByTime(2 * PERIOD);
    expect(written).toEqual(["a"]);
  });
});
