import { describe, expect, it } from "vitest";
import { phrases, Stopwatch, tokensPerSecond } from "../src/logic/figures";

/** Figures of an answer that was begun at 1 s, and whose pieces came at `times`, in milliseconds. */
function measured(times: number[], tokens: number | null, finish: string | null) {
  const ticks = [1000, ...times];
  const watch = new Stopwatch(() => ticks.shift()!);
  times.forEach(() => watch.piece());
  return watch.figures(tokens, finish);
}

describe("the figures of an answer", () => {
  it("give the time to the first token, and the rate after it", () => {
    const figures = measured([1250, 1500, 1750], 101, "length");
    expect(tokensPerSecond(figures)).toBe(200);
    expect(phrases(figures)).toEqual([
      "101 tokens",
      "200 tokens/s",
      "first after 250 ms",
      "ended at the length limit",
    ]);
  });

  it("say that the tokens were estimated where the server didn't come to count them", () => {
    expect(phrases(measured([1100, 1200], null, "stopped"))).toEqual([
      "about 2 tokens",
      "10 tokens/s",
      "first after 100 ms",
      "stopped",
    ]);
  });

  it("leave out what a single token, or none, doesn't tell", () => {
    expect(phrases(measured([1500], 1, "stop"))).toEqual(["1 token", "first after 500 ms"]);
    expect(phrases(measured([], null, "stopped"))).toEqual(["0 tokens", "stopped"]);
  });
});
