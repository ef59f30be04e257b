import { describe, expect, it } from "vitest";
import { sentences, stretches } from "../src/logic/text";

describe("an answer's stretches", () => {
  it("are prose and fenced code, without blank lines around the prose", () => {
    expect(stretches("See:\n\n```python\nx = 1\n\ny = 2\n```\n\nDone.\n")).toEqual([
      { kind: "prose", text: "See:", language: "" },
      { kind: "code", text: "x = 1\n\ny = 2", language: "python" },
      { kind: "prose", text: "Done.", language: "" },
    ]);
  });

  it("hold code from its opening fence on, while it is still being written", () => {
    expect(stretches("```\nfor")).toEqual([{ kind: "code", text: "for", language: "" }]);
    expect(stretches("```py")).toEqual([{ kind: "code", text: "", language: "py" }]);
  });

  it("end code only at a fence as long as the one that opened it", () => {
    expect(stretches("````\n```\ninner\n```\n````")).toEqual([
      { kind: "code", text: "```\ninner\n```", language: "" },
    ]);
  });

  it("take backticks inside a line, and markup, as text", () => {
    const text = "a ```b``` <img src=x onerror=alert(1)>";
    expect(stretches(text)).toEqual([{ kind: "prose", text, language: "" }]);
    expect(stretches("")).toEqual([]);
  });
});

describe("what a screen reader is told", () => {
  it("is whole sentences and lines", () => {
    const text = "It is 3.5 long. Then this!\nAnd now th";
    expect(sentences(text, false)).toEqual(["It is 3.5 long.", "Then this!"]);
    expect(sentences(text, true)).toEqual(["It is 3.5 long.", "Then this!", "And now th"]);
  });

  it("only grows while the text does", () => {
    const text = "One. Two: three?\n\nFour; five";
    let before: string[] = [];
    for (let length = 0; length <= text.length; length += 1) {
      const now = sentences(text.slice(0, length), false);
      expect(now.slice(0, before.length)).toEqual(before);
      before = now;
    }
    expect(before).toEqual(["One.", "Two:", "three?", "Four;"]);
  });
});
