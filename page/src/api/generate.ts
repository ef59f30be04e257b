import { ApiError, call, type Call } from "./client";
import { eventsOf } from "./events";

export interface Message {
  role: "user" | "assistant";
  content: string;
}

/** What is to be answered: a conversation, or a text to go on with. */
export type Prompt = { messages: Message[] } | { prompt: string };

/** The fields of a request that a user may set; those that are left out are the server's choice. */
export interface Options {
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
  seed?: number;
}

/** A piece of an answer: its text, why it ended, how many tokens it has in all; each once it is known. */
export interface Piece {
  text: string;
  finish: string | null;
  tokens: number | null;
}

interface Chunk {
  error?: { message?: string };
  choices?: { text?: string; delta?: { content?: string | null }; finish_reason?: string | null }[];
  usage?: { completion_tokens: number } | null;
}

export const BROKEN_OFF = "The connection broke off before the answer was complete.";

/**
 * Asks `model` and yields the answer piece by piece.
 *
 * Throws ApiError if the server refuses, fails or breaks off, and an AbortError once it is aborted.
 */
export async function* generate(
  model: string,
  prompt: Prompt,
  options: Options,
  { key, signal }: Omit<Call, "body">,
): AsyncGenerator<Piece> {
  const path = "messages" in prompt ? "v1/chat/completions" : "v1/completions";
  const body = { model, ...prompt, ...options, stream: true, stream_options: { include_usage: true } };
  const response = await call(path, { key, signal, body });
  try {
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") return;
      yield read(JSON.parse(data) as Chunk);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError(BROKEN_OFF, 0);
  }
  throw new ApiError(BROKEN_OFF, 0);
}

function read(chunk: Chunk): Piece {
  if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed.", 500);
  const choice = chunk.choices?.[0];
  return {
    text: choice?.delta?.content ?? choice?.text ?? "",
    finish: choice?.finish_reason ?? null,
    tokens: chunk.usage?.completion_tokens ?? null,
  };
}
