import { svelte } from "@sveltejs/vite-plugin-svelte";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

/** SHA-256 of all that the built page is made from. `tests/server/page/test_built.py` computes the same. */
function sourceHash(): string {
  const sources = readdirSync("src", { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`);
  const files = [...sources, "index.html", "package-lock.json", "vite.config.ts"].sort();
  const hash = createHash("sha256");
  for (const file of files) hash.update(`${file}\n`).update(readFileSync(file));
  return hash.digest("hex");
}

/** Notes in the built page what it was made from, and puts beside it the licence of what went into it. */
const provenance: Plugin = {
  name: "provenance",
  apply: "build",
  transformIndexHtml: () => [
    { tag: "meta", attrs: { name: "source", content: sourceHash() }, injectTo: "head" },
  ],
  generateBundle() {
    const source = readFileSync("node_modules/svelte/LICENSE.md");
    this.emitFile({ type: "asset", fileName: "svelte-licence.txt", source });
  },
};

export default defineConfig({
  plugins: [svelte(), provenance],
  // Relative addresses: the page also works behind a proxy that serves it under a path.
  base: "./",
  build: {
    outDir: "../ridgeline/server/page",
    emptyOutDir: true,
    // Everything is a file of its own: the server's Content-Security-Policy allows nothing inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  // `npm run dev` beside `ridgeline serve`.
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
  test: { include: ["tests/**/*.test.ts"] },
});
