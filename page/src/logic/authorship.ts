/** A run of the pad's text by one author. */
export interface Run {
  text: string;
  author: "user" | "model";
}

export function textOf(runs: readonly Run[]): string {
  return runs.map((run) => run.text).join("");
}

/** `runs` with `text` put in at `offset`, by `author`. */
export function insert(runs: readonly Run[], offset: number, text: string, author: Run["author"]): Run[] {
  const length = textOf(runs).length;
  return merge([...cut(runs, 0, offset), { text, author }, ...cut(runs, offset, length)]);
}

/**
 * `runs` after the user edited their text into `edited`. What changed is the user's: all between the longest
 * beginning and the longest end that both texts have.
 */
export function edit(runs: readonly Run[], edited: string): Run[] {
  const before = textOf(runs);
  const shortest = Math.min(before.length, edited.length);
  let start = 0;
  while (start < shortest && before[start] === edited[start]) start += 1;
  let end = 0;
  while (end < shortest - start && before.at(-1 - end) === edited.at(-1 - end)) end += 1;
  const typed: Run = { text: edited.slice(start, edited.length - end), author: "user" };
  return merge([...cut(runs, 0, start), typed, ...cut(runs, before.length - end, before.length)]);
}

/** The part of `runs` from the character `start` to before the character `end`. */
function cut(runs: readonly Run[], start: number, end: number): Run[] {
  let offset = 0;
  return runs.map(({ text, author }) => {
    const part = text.slice(Math.max(0, start - offset), Math.max(0, end - offset));
    offset += text.length;
    return { text: part, author };
  });
}

function merge(runs: readonly Run[]): Run[] {
  const merged: Run[] = [];
  for (const run of runs) {
    const last = merged.at(-1);
    if (last?.author === run.author) last.text += run.text;
    else if (run.text) merged.push({ ...run });
  }
  return merged;
}
