import { describe, expect, it } from "vitest";
import { EventParser, eventsOf } from "../src/api/events";

const STREAM = 'event: status\ndata: {"a": 1}\n\n: a comment\ndata: one\ndata:two\n\ndata: [DONE]\n\n';
const EVENTS = [
  { name: "status", data: '{"a": 1}' },
  { name: "message", data: "one\ntwo" },
  { name: "message", data: "[DONE]" },
];

describe("server-sent events", () => {
  it.each(["\n", "\r\n", "\r"])("are read with lines that end in %j", (end) => {
    const parser = new EventParser();
    const events = parser.push(STREAM.replaceAll("\n", end));
    // A carriage return at the very end may be half of a line's end: it counts once more has come.
    expect([...events, ...parser.push(":\n")]).toEqual(EVENTS);
  });

  it.each(["\n", "\r\n"])("are the same however the text is cut (%j)", (end) => {
    const text = STREAM.replaceAll("\n", end);
    for (let at = 0; at <= text.length; at += 1) {
      const parser = new EventParser();
      expect([...parser.push(text.slice(0, at)), ...parser.push(text.slice(at))]).toEqual(EVENTS);
    }
  });

  it("need an empty line to be complete, and data to be events", () => {
    const parser = new EventParser();
    expect(parser.push("data: half")).toEqual([]);
    expect(parser.push("\nevent: nothing\nid: 7\nretry: 9\n")).toEqual([]);
    expect(parser.push("\n")).toEqual([{ name: "nothing", data: "half" }]);
    expect(parser.push("event: empty\n\n")).toEqual([]);
  });

  it("are decoded where a character is cut in two", async () => {
    const bytes = new TextEncoder().encode("data: ä€𝄞\n\n");
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
        controller.close();
      },
    });
    const events = [];
    for await (const event of eventsOf(new Response(body))) events.push(event);
    expect(events).toEqual([{ name: "message", data: "ä€𝄞" }]);
  });
});
