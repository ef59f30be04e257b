import type { Options } from "../api/generate";

/** A number that the user may set for a request. */
export interface Setting {
  name: keyof Options;
  label: string;
  least: number;
  most: number | null;
  step: number | "any";
}

/** The settings in the order in which they are shown. */
export const SETTINGS: readonly Setting[] = [
  { name: "temperature", label: "Temperature", least: 0, most: null, step: "any" },
  { name: "top_p", label: "Top-p", least: 0, most: 1, step: "any" },
  { name: "max_tokens", label: "Max tokens", least: 1, most: null, step: 1 },
  { name: "seed", label: "Seed", least: 0, most: null, step: 1 },
];

/** What stands in the fields; an empty one leaves the choice to the server. */
export type Entries = Record<keyof Options, string>;

export const EMPTY: Entries = { temperature: "", top_p: "", max_tokens: "", seed: "" };

/** Why `entry` can't be used for `setting`, or null if it can. */
export function fault({ label, least, most, step }: Setting, entry: string): string | null {
  if (entry.trim() === "") return null;
  const value = Number(entry);
  const range = most === null ? `${least} or more` : `${least} to ${most}`;
  const wrong = !Number.isFinite(value) || value < least || value > (most ?? Infinity);
  if (step === 1 && (wrong || !Number.isInteger(value))) return `${label} is a whole number, ${range}.`;
  return wrong ? `${label} is a number, ${range}.` : null;
}

/** The fields of a request that `entries` set. */
export function optionsOf(entries: Entries): Options {
  const set = SETTINGS.filter(({ name }) => entries[name].trim() !== "");
  return Object.fromEntries(set.map(({ name }) => [name, Number(entries[name])]));
}
