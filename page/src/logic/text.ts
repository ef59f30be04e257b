/** A stretch of an answer: running text, or code between fences. */
export interface Stretch {
  kind: "prose" | "code";
  text: string;
  /** What the fence calls the code; empty if it doesn't say. */
  language: string;
}

/** Splits an answer at its ``` fences. A fence that isn't closed yet reaches to the end. */
export function stretches(text: string): Stretch[] {
  const found: Stretch[] = [];
  let lines: string[] = [];
  let fence: { marks: string; language: string } | null = null;
  const close = () => {
    const stretch = lines.join("\n");
    if (fence || stretch.trim()) {
      const kept = fence ? stretch : stretch.replace(/^\n+|\s+$/g, "");
      found.push({ kind: fence ? "code" : "prose", text: kept, language: fence?.language ?? "" });
    }
    lines = [];
  };
  for (const line of text.split("\n")) {
    const opening: RegExpMatchArray | null = fence ? null : line.match(/^ {0,3}(`{3,})([^`]*)$/);
    if (opening) {
      close();
      fence = { marks: opening[1] ?? "", language: (opening[2] ?? "").trim() };
    } else if (fence && line.trim() === fence.marks) {
      close();
      fence = null;
    } else {
      lines.push(line);
    }
  }
  close();
  return found;
}

/**
 * The sentences and lines of a text that is still being written, for a screen reader: the last one is left
 * out until it is complete, so that nothing is read word by word.
 */
export function sentences(text: string, complete: boolean): string[] {
  const pieces = text.split(/(?<=[.!?:;]\s)|\n+/);
  if (!complete) pieces.pop();
  return pieces.map((piece) => piece.trim()).filter((piece) => piece !== "");
}
