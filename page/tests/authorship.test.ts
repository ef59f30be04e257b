import { describe, expect, it } from "vitest";
import { edit, insert, textOf, type Run } from "../src/logic/authorship";

const RUNS: Run[] = [
  { text: "def f():", author: "user" },
  { text: "\n    pass", author: "model" },
];

describe("who wrote what on the pad", () => {
  it("keeps the model's text apart from the user's", () => {
    const runs = insert(insert([], 0, "def f():", "user"), 8, "\n    ", "model");
    expect(insert(runs, 13, "pass", "model")).toEqual(RUNS);
  });

  it("lets the model write in the middle", () => {
    expect(insert([{ text: "ab", author: "user" }], 1, "X", "model")).toEqual([
      { text: "a", author: "user" },
      { text: "X", author: "model" },
      { text: "b", author: "user" },
    ]);
  });

  it("gives the user what the user changes, and no more", () => {
    expect(edit(RUNS, "def f():\n    return")).toEqual([
      { text: "def f():", author: "user" },
      { text: "\n    ", author: "model" },
      { text: "return", author: "user" },
    ]);
    expect(edit(RUNS, "def f(x):\n    pass")).toEqual([{ text: "def f(x):", author: "user" }, RUNS[1]]);
    expect(edit(RUNS, "")).toEqual([]);
  });

  it("always has the text that the field has", () => {
    const texts = ["", "aa", "aaa", "aba", "ab", "b", "aab", "xaabx"];
    let runs: Run[] = [];
    for (const before of texts) {
      for (const after of texts) {
        runs = insert(edit(runs, before), Math.floor(before.length / 2), "aa", "model");
        runs = edit(runs, after);
        expect(textOf(runs)).toBe(after);
        expect(runs.every((run) => run.text !== "")).toBe(true);
      }
    }
  });

  it("does not change the runs it was given", () => {
    const before = structuredClone(RUNS);
    insert(RUNS, 8, "x", "user");
    edit(RUNS, "other");
    expect(RUNS).toEqual(before);
  });
});
