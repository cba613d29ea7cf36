#!/usr/bin/env node
// Joins each program of package.json's "bin" and the worker thread with all they import into a few
// files of dist/cli: a start then opens 5 files instead of 200, in half the time.
// Called by tools/build.mjs. The library in dist stays one file a module.
import { chmodSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';
import { inlineNumbers } from './inline-numbers.mjs';

const OUT = 'dist/cli';
const { bin } = JSON.parse(readFileSync('package.json', 'utf8'));
const programs = Object.values(bin);

const { metafile } = await build({
  entryPoints: [
    ...programs.map((path) => path.replace(/^dist\/(.*)\.js$/, 'lib/$1.ts')),
    // The engine starts the worker from the folder it lies in itself (lib/daemon/engine.ts).
    'lib/daemon/worker.ts',
  ],
  outdir: OUT,
  // One folder: what finds package.json or the addon from its own place does so at this depth too.
  entryNames: '[name]',
  chunkNames: 'chunk-[hash]',
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node20.19',
  metafile: true,
  plugins: [inlineNumbers(resolve('lib'))],
  logLevel: 'warning',
});
for (const path of programs) chmodSync(path, 0o755);

// The licences ask that their text goes along.
const notices = new Map();
for (const input of Object.keys(metafile.inputs)) {
  const [folder, name] = /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(input) ?? [];
  if (folder !== undefined && !notices.has(name)) notices.set(name, notice(folder));
}
writeFileSync(
  join(OUT, 'THIRD-PARTY-LICENSES'),
  [...notices].map(([name, text]) => `${name}\n\n${text}\n`).join(`\n${'-'.repeat(72)}\n\n`),
);

function notice(folder) {
  const file = readdirSync(folder).find((name) => /^licen[cs]e/i.test(name));
  if (file === undefined) throw new Error(`${folder}: no licence file to pass on`);
  return readFileSync(join(folder, file), 'utf8').trim();
}
