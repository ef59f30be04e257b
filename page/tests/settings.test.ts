import { describe, expect, it } from "vitest";
import { EMPTY, fault, optionsOf, SETTINGS, type Setting } from "../src/logic/settings";

function setting(name: Setting["name"]): Setting {
  return SETTINGS.find((found) => found.name === name)!;
}

describe("settings", () => {
  it("that are empty are left to the server", () => {
    expect(optionsOf(EMPTY)).toEqual({});
    expect(optionsOf({ ...EMPTY, temperature: "0", seed: " 7 " })).toEqual({ temperature: 0, seed: 7 });
  });

  it.each([
    ["temperature", "", null],
    ["temperature", "0.7", null],
    ["temperature", "-1", "Temperature is a number, 0 or more."],
    ["temperature", "warm", "Temperature is a number, 0 or more."],
    ["top_p", "-0.1", "Top-p is a number, 0 to 1."],
    ["max_tokens", "100000", null],
    ["max_tokens", "0", "Max tokens is a whole number, 1 or more."],
    ["seed", "1.5", "Seed is a whole number, 0 or more."],
  ] as const)("%s of %j: %s", (name, entry, said) => {
    expect(fault(setting(name), entry)).toBe(said);
  });
});
