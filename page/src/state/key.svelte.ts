const PLACE = "ridgeline.key";

/** The API key, where the server asks for one. It is kept for this tab alone. */
export class Key {
  value = $state(read());
  /** Whether the server has refused `value`. */
  refused = $state(false);

  enter(value: string): void {
    this.value = value.trim();
    this.refused = false;
    try {
      sessionStorage.setItem(PLACE, this.value);
    } catch {
      // Then it lasts until the page is closed.
    }
  }
}

function read(): string {
  try {
    return sessionStorage.getItem(PLACE) ?? "";
  } catch {
    return "";
  }
}
