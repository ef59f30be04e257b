import { describe, expect, it } from "vitest";
import { linePath, niceCeiling } from "../src/logic/sparkline";

describe("the sparkline", () => {
  it.each([
    [0, 1],
    [1, 1],
    [231, 300],
    [300, 300],
    [701, 1000],
    [1001, 1500],
  ])("of at most %d reaches to %d", (x, most) => expect(niceCeiling(x)).toBe(most));

  it("grows from the right edge, and fills the width once there are enough values", () => {
    expect(linePath([1], 5, 1, 80, 40)).toBe("");
    expect(linePath([0, 1], 5, 1, 80, 40)).toBe("M60,40L80,0");
    expect(linePath([2, 2, 2, 2, 4], 5, 4, 80, 40)).toBe("M0,20L20,20L40,20L60,20L80,0");
  });
});
