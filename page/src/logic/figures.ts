import { count, seconds } from "./format";

/** What one answer took. Times are in seconds. */
export interface Figures {
  tokens: number;
  /** Whether the server counted the tokens; if it did not come to that, the pieces of text were counted. */
  counted: boolean;
  /** From the request to the first token; null if none came. */
  firstToken: number | null;
  /** From the first token to the last. */
  writing: number;
  /** As the server says: "stop", "length", ...; "stopped" by the user; null if it failed. */
  finish: string | null;
}

/** Tokens a second between the first and the last: what TPOT is the inverse of; null for a single one. */
export function tokensPerSecond({ tokens, writing }: Figures): number | null {
  return tokens > 1 && writing > 0 ? (tokens - 1) / writing : null;
}

/** Figures as short phrases. */
export function phrases(figures: Figures): string[] {
  const { tokens, counted, firstToken, finish } = figures;
  const said = [`${counted || tokens === 0 ? "" : "about "}${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`];
  const speed = tokensPerSecond(figures);
  if (speed !== null) said.push(`${count(Number(speed.toPrecision(3)))} tokens/s`);
  if (firstToken !== null) said.push(`first after ${seconds(firstToken)}`);
  if (finish === "length") said.push("ended at the length limit");
  if (finish === "stopped") said.push("stopped");
  return said;
}

/** Measures one answer: begun when it is made, told of every piece of text. Clock values are milliseconds. */
export class Stopwatch {
  #pieces = 0;
  #first: number | null = null;
  #last = 0;

  constructor(
    readonly clock: () => number = () => performance.now(),
    readonly start = clock(),
  ) {}

  piece(): void {
    this.#last = this.clock();
    this.#first ??= this.#last;
    this.#pieces += 1;
  }

  figures(tokens: number | null, finish: string | null): Figures {
    return {
      tokens: tokens ?? this.#pieces,
      counted: tokens !== null,
      firstToken: this.#first === null ? null : (this.#first - this.start) / 1e3,
      writing: this.#first === null ? 0 : (this.#last - this.#first) / 1e3,
      finish,
    };
  }
}
