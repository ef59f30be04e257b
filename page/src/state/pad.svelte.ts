import type { Options } from "../api/generate";
import { edit, insert, textOf, type Run } from "../logic/authorship";
import type { Figures } from "../logic/figures";
import type { Generation } from "./generation.svelte";
import { store, stored } from "./stored";

const PLACE = "ridgeline.pad";
/** Without a limit a text model would write to the end of its window. */
export const MAX_TOKENS = 128;

/** The text that a model without a chat template goes on with, where the caret is. It survives a reload. */
export class Pad {
  runs = $state.raw<Run[]>(stored(PLACE, []));
  /** Of the last completion. */
  figures = $state.raw<Figures | null>(null);
  error = $state<string | null>(null);
  /** The text before the last completion, or before it was cleared; null once it has been edited since. */
  before = $state.raw<Run[] | null>(null);

  text = $derived(textOf(this.runs));
  /** The character where the last completion began. */
  #start = 0;

  constructor(readonly generation: Generation) {}

  edit(text: string): void {
    this.runs = edit(this.runs, text);
    this.before = null;
    this.save();
  }

  /** Writes on from the character `caret`, and says where the caret is now. */
  async complete(model: string, caret: number, options: Options): Promise<number> {
    const prompt = this.text.slice(0, caret);
    let end = caret;
    this.#start = caret;
    this.before = this.runs;
    this.figures = null;
    this.error = null;
    const outcome = await this.generation.run(
      model,
      { prompt },
      { max_tokens: MAX_TOKENS, ...options },
      (text) => {
        this.runs = insert(this.runs, end, text, "model");
        end += text.length;
      },
    );
    this.figures = outcome.figures;
    this.error = outcome.error;
    this.save();
    return end;
  }

  /** Writes the last completion anew, and says where the caret is now. */
  retry(model: string, options: Options): Promise<number> {
    this.undo();
    return this.complete(model, this.#start, options);
  }

  clear(): void {
    this.#replace([], this.runs);
  }

  /** Takes back the last completion or clearing. */
  undo(): void {
    if (this.before) this.#replace(this.before, null);
  }

  save(): void {
    store(PLACE, this.runs);
  }

  #replace(runs: Run[], before: Run[] | null): void {
    this.runs = runs;
    this.before = before;
    this.figures = null;
    this.error = null;
    this.save();
  }
}
