/** What `GET /v1/status` answers, and what every event of `/v1/status/stream` holds. */
export interface Status {
  model: ModelStatus;
  device: DeviceStatus;
  engine: EngineStatus;
  /** The latest step on the roofline; null while the engine has nothing to do. */
  point: Point | null;
}

export interface ModelStatus {
  name: string;
  parameters: number;
  /** The format that the weights are stored in. */
  weights: string;
  /** Tokens of a prompt and its answer together. */
  window: number;
  /** Whether the model has a chat template; without one it continues texts. */
  chat: boolean;
}

export interface DeviceStatus {
  name: string;
  /** FLOP/s, or null where nothing is known of the device. */
  peak_flops: number | null;
  /** Bytes/s from memory, or null likewise. */
  bandwidth: number | null;
  /** Whether the two were measured here; else they are a datasheet's. */
  measured: boolean;
}

export interface EngineStatus {
  running: number;
  waiting: number;
  /** The most sequences that one step may hold; 0 of an encoder, which generates nothing. */
  sequences: number;
  /** Blocks of `block_size` tokens. */
  kv_used: number;
  kv_total: number;
  block_size: number;
  preemptions: number;
  tokens_per_second: number;
  prompt_tokens_per_second: number;
  requests_done: number;
  alive: boolean;
  /** Seconds. */
  uptime: number;
}

/** One step of the engine: `flops` and `bytes` in `seconds`, for `rows` tokens. */
export interface Point {
  /** FLOP/byte. */
  intensity: number;
  flops_per_second: number;
  rows: number;
  seconds: number;
  flops: number;
  bytes: number;
}
