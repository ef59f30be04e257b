/** One server-sent event. */
export interface ServerEvent {
  name: string;
  data: string;
}

/**
 * Reads server-sent events from text that comes in pieces of any length, as the HTML standard lays them
 * down: fields on lines, an empty line ends the event, a line that begins with a colon is a comment.
 */
export class EventParser {
  #rest = "";
  #name = "";
  #data: string[] = [];

  /** The events that `text` completes. */
  push(text: string): ServerEvent[] {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.#take(line));
  }

  #take(line: string): ServerEvent[] {
    if (line === "") return this.#finish();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    if (field === "event") this.#name = value;
    return [];
  }

  #finish(): ServerEvent[] {
    const event = { name: this.#name || "message", data: this.#data.join("\n") };
    const complete = this.#data.length > 0;
    this.#name = "";
    this.#data = [];
    return complete ? [event] : [];
  }
}

/** The events of a response as they arrive. */
export async function* eventsOf(response: Response): AsyncGenerator<ServerEvent> {
  if (response.body === null) return;
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
