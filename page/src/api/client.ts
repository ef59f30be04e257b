/** A request that the server refused, or that never reached it. */
export class ApiError extends Error {
  constructor(
    message: string,
    /** The HTTP status; 0 if the server did not answer, or broke off. */
    readonly status: number,
  ) {
    super(message);
  }
}

export interface Call {
  /** The API key; empty for none. */
  key: string;
  signal: AbortSignal;
  /** What to POST; without it the call is a GET. */
  body?: object;
}

/**
 * The response to a call of the server's API at `path`, relative to the page.
 *
 * Throws ApiError with the server's own message if it refuses, and an AbortError if `signal` says so.
 */
export async function call(path: string, { key, signal, body }: Call): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const init: RequestInit = { headers, signal, cache: "no-store" };
  if (body) Object.assign(init, { method: "POST", body: JSON.stringify(body) });
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (!response.ok) throw new ApiError(await messageOf(response), response.status);
  return response;
}

async function messageOf(response: Response): Promise<string> {
  const unknown = `The server answered with status ${response.status}.`;
  try {
    const { error } = (await response.json()) as { error?: { message?: string } };
    return error?.message ?? unknown;
  } catch {
    return unknown;
  }
}
