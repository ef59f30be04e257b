import { EMPTY, fault, optionsOf, SETTINGS, type Entries } from "../logic/settings";
import { store, stored } from "./stored";

const PLACE = "ridgeline.settings";

/** What the user asks of every answer. It survives a reload. */
export class Settings {
  entries = $state<Entries>({ ...EMPTY, ...stored<Partial<Entries>>(PLACE, {}) });
  options = $derived(optionsOf(this.entries));
  faults = $derived(SETTINGS.map((setting) => fault(setting, this.entries[setting.name])));
  /** Whether every entry can be used. */
  valid = $derived(this.faults.every((found) => found === null));

  save(): void {
    store(PLACE, this.entries);
  }
}
