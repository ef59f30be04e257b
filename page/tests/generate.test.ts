import { afterEach, describe, expect, it, vi } from "vitest";
import { ApiError } from "../src/api/client";
import { generate, type Piece, type Prompt } from "../src/api/generate";

const signal = new AbortController().signal;
const CHAT: Prompt = { messages: [{ role: "user", content: "Hello" }] };

function answers(body: string, status = 200) {
  const fetched = vi.fn(async (_path: string, _init: RequestInit) => new Response(body, { status }));
  vi.stubGlobal("fetch", fetched);
  return fetched;
}

async function all(prompt: Prompt, key = ""): Promise<Piece[]> {
  const pieces = [];
  for await (const piece of generate("m", prompt, { seed: 7 }, { key, signal })) pieces.push(piece);
  return pieces;
}

function stream(...chunks: object[]): string {
  const data = [...chunks.map((chunk) => JSON.stringify(chunk)), "[DONE]"];
  return data.map((line) => `data: ${line}\n\n`).join("");
}

afterEach(() => void vi.unstubAllGlobals());

describe("an answer", () => {
  it("is asked for as a chat, with the options that are set and the usage", async () => {
    const fetched = answers(stream());
    await all(CHAT, "secret");
    const [path, init] = fetched.mock.calls[0]!;
    expect(path).toBe("v1/chat/completions");
    expect(init.headers).toMatchObject({ Authorization: "Bearer secret" });
    expect(JSON.parse(init.body as string)).toEqual({
      model: "m",
      ...CHAT,
      seed: 7,
      stream: true,
      stream_options: { include_usage: true },
    });
  });

  it("is asked for as a completion without a key", async () => {
    const fetched = answers(stream());
    await all({ prompt: "def" });
    const [path, init] = fetched.mock.calls[0]!;
    expect(path).toBe("v1/completions");
    expect(init.headers).not.toHaveProperty("Authorization");
  });

  it("comes in pieces of text, then with its end and its tokens", async () => {
    answers(
      stream(
        { choices: [{ delta: { role: "assistant", content: "" } }] },
        { choices: [{ delta: { content: "Hi" } }] },
        { choices: [{ delta: {}, finish_reason: "stop" }] },
        { choices: [], usage: { completion_tokens: 2 } },
      ),
    );
    expect(await all(CHAT)).toEqual([
      { text: "", finish: null, tokens: null },
      { text: "Hi", finish: null, tokens: null },
      { text: "", finish: "stop", tokens: null },
      { text: "", finish: null, tokens: 2 },
    ]);
  });

  it.each([
    ['{"error": {"message": "no such model"}}', 404, "no such model"],
    ["<html>", 502, "The server answered with status 502."],
  ])("that is refused with %j says why", async (body, status, message) => {
    answers(body, status);
    await expect(all(CHAT)).rejects.toThrow(new ApiError(message, status));
  });

  it.each([
    [stream({ error: { message: "out of blocks" } }), "out of blocks"],
    ['data: {"choices": []}\n\n', "The connection broke off before the answer was complete."],
    ["data: {broken\n\n", "The connection broke off before the answer was complete."],
  ])("that fails on the way says why: %j", async (body, message) => {
    answers(body);
    await expect(all(CHAT)).rejects.toThrow(message);
  });

  it("that no server gives says so", async () => {
    vi.stubGlobal("fetch", async () => Promise.reject(new TypeError("Failed to fetch")));
    await expect(all(CHAT)).rejects.toThrow("The server does not answer.");
  });
});
