/** The value kept under `key` in this browser, or `otherwise` if there is none that can be read. */
export function stored<T>(key: string, otherwise: T): T {
  try {
    const text = localStorage.getItem(key);
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

/** Keeps `value` under `key`. Where the browser keeps nothing, it lasts until the page is closed. */
export function store(key: string, value: unknown): void {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // Storage is full or turned off.
  }
}
