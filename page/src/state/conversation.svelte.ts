import type { Message, Options } from "../api/generate";
import type { Figures } from "../logic/figures";
import type { Generation } from "./generation.svelte";
import { store, stored } from "./stored";

const PLACE = "ridgeline.conversation";

/** A question and its answer, as far as it has come. */
export interface Turn {
  question: string;
  answer: string;
  /** Null while the answer is being written, or if the page was left meanwhile. */
  figures: Figures | null;
  /** Why the answer failed. */
  error: string | null;
}

/** The conversation with a model that has a chat template. It survives a reload of the page. */
export class Conversation {
  turns = $state<Turn[]>(stored(PLACE, []));
  /** What `clear` took away, until the next question. */
  cleared = $state.raw<Turn[]>([]);

  constructor(readonly generation: Generation) {}

  /** What the model is told: the turns that have an answer, and the last question. */
  get messages(): Message[] {
    return this.turns.flatMap(({ question, answer }, i): Message[] => {
      const asked: Message = { role: "user", content: question };
      if (i === this.turns.length - 1) return [asked];
      return answer ? [asked, { role: "assistant", content: answer }] : [];
    });
  }

  ask(model: string, question: string, options: Options): Promise<void> {
    this.cleared = [];
    this.turns.push({ question, answer: "", figures: null, error: null });
    return this.#answer(model, options);
  }

  /** Answers the last question anew. */
  retry(model: string, options: Options): Promise<void> {
    const last = this.turns.pop();
    return last ? this.ask(model, last.question, options) : Promise.resolve();
  }

  clear(): void {
    this.generation.stop();
    this.cleared = this.turns;
    this.turns = [];
    this.save();
  }

  restore(): void {
    this.turns = this.cleared;
    this.cleared = [];
    this.save();
  }

  save(): void {
    store(PLACE, this.turns);
  }

  async #answer(model: string, options: Options): Promise<void> {
    const turn = this.turns.at(-1);
    if (turn === undefined) return;
    this.save();
    const prompt = { messages: this.messages };
    const outcome = await this.generation.run(model, prompt, options, (text) => (turn.answer += text));
    turn.figures = outcome.figures;
    turn.error = outcome.error;
    this.save();
  }
}
