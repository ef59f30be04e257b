/** Milliseconds in which text is gathered: an engine writes faster than anyone sees, on the same cores. */
export const PERIOD = 40;

/** Hands text on in larger pieces: at most one in `PERIOD`. */
export class Gatherer {
  #text = "";
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly write: (text: string) => void) {}

  add(text: string): void {
    this.#text += text;
    this.#timer ??= setTimeout(() => this.flush(), PERIOD);
  }

  /** Hands on what there is. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const text = this.#text;
    this.#text = "";
    if (text) this.write(text);
  }
}
