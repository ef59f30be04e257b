import { ApiError, call } from "../api/client";
import { eventsOf } from "../api/events";
import type { Point, Status } from "../api/status";
import type { Key } from "./key.svelte";

/** Samples of the throughput that are kept: a minute at two a second. */
export const SAMPLES = 120;
/** Steps that the trail of the operating point shows. */
export const TRAIL = 24;
/** Milliseconds before the first attempts to connect again, and before all later ones. */
const PAUSES = [500, 1000, 2000];
const LONGEST_PAUSE = 5000;

/** What the engine says of itself, as it comes, and the little of its past that is shown. */
export class Telemetry {
  status = $state.raw<Status | null>(null);
  /** Whether `status` is of now. */
  connected = $state(false);
  /** Tokens/s, the newest last. */
  speeds = $state.raw<number[]>([]);
  /** Steps, the newest last; of an idle engine only the last one. */
  trail = $state.raw<Point[]>([]);

  constructor(private readonly key: Key) {}

  /** Follows the server's status until `signal`, through broken connections; ends if the key is refused. */
  async follow(signal: AbortSignal): Promise<void> {
    let failures = 0;
    while (!signal.aborted) {
      try {
        const response = await call("v1/status/stream", { key: this.key.value, signal });
        for await (const { name, data } of eventsOf(response)) {
          if (name === "status") this.take(JSON.parse(data) as Status);
          failures = 0;
        }
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) this.key.refused = true;
      }
      this.connected = false;
      if (this.key.refused) return;
      await pause(PAUSES[failures] ?? LONGEST_PAUSE, signal);
      failures += 1;
    }
  }

  take(status: Status): void {
    const { engine, point } = status;
    this.status = status;
    this.connected = true;
    this.speeds = [...this.speeds, engine.tokens_per_second].slice(-SAMPLES);
    this.trail = point ? [...this.trail, point].slice(-TRAIL) : this.trail.slice(-1);
  }
}

/** Resolves after so many milliseconds, or at once when `signal` aborts. */
function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
