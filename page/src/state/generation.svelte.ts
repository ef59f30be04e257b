import { ApiError } from "../api/client";
import { generate, type Options, type Prompt } from "../api/generate";
import { Stopwatch, type Figures } from "../logic/figures";
import { Gatherer } from "../logic/gather";
import type { Key } from "./key.svelte";

/** How a generation went: its figures and, if it failed, the message that says why. */
export interface Outcome {
  figures: Figures;
  error: string | null;
}

/** Asks the server for one answer at a time. */
export class Generation {
  running = $state(false);
  /** What the latest answer says so far. */
  text = $state("");
  #controller = new AbortController();

  constructor(private readonly key: Key) {}

  /** Hands every piece of the answer to `write`. Never throws: a failure is in the outcome. */
  async run(
    model: string,
    prompt: Prompt,
    options: Options,
    write: (text: string) => void,
  ): Promise<Outcome> {
    this.#controller = new AbortController();
    this.running = true;
    this.text = "";
    const { signal } = this.#controller;
    const watch = new Stopwatch();
    const gatherer = new Gatherer((text) => {
      this.text += text;
      write(text);
    });
    let tokens: number | null = null;
    let finish: string | null = null;
    try {
      for await (const piece of generate(model, prompt, options, { key: this.key.value, signal })) {
        if (piece.text) {
          watch.piece();
          gatherer.add(piece.text);
        }
        tokens = piece.tokens ?? tokens;
        finish = piece.finish ?? finish;
      }
      return { figures: watch.figures(tokens, finish), error: null };
    } catch (error) {
      if (signal.aborted) return { figures: watch.figures(tokens, "stopped"), error: null };
      if (error instanceof ApiError && error.status === 401) this.key.refused = true;
      return { figures: watch.figures(tokens, null), error: (error as Error).message };
    } finally {
      gatherer.flush();
      this.running = false;
    }
  }

  stop(): void {
    this.#controller.abort();
  }
}
