// Bundles the page's program: `node build.mjs FOLDER` writes page.js and page.css there. The licences of what is bundled
// go with it, in a comment, into every page.

import { build } from "esbuild";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

const folder = process.argv[2];
if (!folder) throw new Error("usage: node build.mjs FOLDER");
const { outputFiles, metafile } = await build({
  entryPoints: ["src/main.tsx"],
  outfile: "page.js",
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  jsx: "automatic",
  jsxImportSource: "preact",
  metafile: true,
  write: false,
});

const packages = new Set();
for (const input of Object.keys(metafile.inputs)) {
  const name = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1];
  if (name) packages.add(name);
}
const notices = [...packages].sort().map((name) => {
  const home = join("node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(home, "package.json"), "utf8"));
  const file = readdirSync(home).find((f) => /^licen[cs]e/i.test(f));
  if (!file) throw new Error(`${name} has no file with its licence`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(home, file), "utf8").trim()}`;
});
const banner = `/*!\nsnncc's explorer, Apache-2.0. It contains:\n\n${notices.join("\n\n----\n\n")}\n*/\n`;
if (banner.slice(2, -3).includes("*/") || /<\/script/i.test(banner)) throw new Error("a licence that no comment holds");

if (!existsSync(folder)) mkdirSync(folder, { recursive: true });
for (const { path, contents } of outputFiles) {
  const name = basename(path);
  writeFileSync(join(folder, name), name.endsWith(".js") ? Buffer.concat([Buffer.from(banner), contents]) : contents);
}
