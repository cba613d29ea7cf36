#!/usr/bin/env node
// The layers of docs/architecture.md: an import never points up. Prints each that does; exits 1 then.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const lib = fileURLToPath(new URL('../lib/', import.meta.url));

/** What each room may import besides itself. */
const MAY = {
  native: [],
  virtio: [],
  store: ['native'],
  vdpa: ['native'],
  generation: ['native'],
  block: ['virtio', 'store'],
  rpmb: ['virtio', 'store'],
  reactor: ['native', 'virtio'],
  frontend: ['native', 'virtio'],
  transport: ['native', 'virtio', 'reactor', 'vdpa'],
  daemon: [
    'native',
    'virtio',
    'store',
    'vdpa',
    'generation',
    'block',
    'rpmb',
    'reactor',
    'frontend',
    'transport',
  ],
  cli: ['daemon', 'frontend', 'store', 'rpmb', 'native'],
  testing: [
    'native',
    'virtio',
    'store',
    'vdpa',
    'generation',
    'block',
    'rpmb',
    'reactor',
    'frontend',
    'transport',
    'daemon',
  ],
  'index.ts': ['daemon', 'frontend', 'store', 'rpmb', 'block', 'virtio'],
};

/** Types of the addon may be named anywhere: they carry no code. */
const isTypeOnly = (statement) => /^(import|export) type\b/.test(statement);

const room = (file) => relative(lib, file).split('/')[0];

let wrong = 0;
for (const file of readdirSync(lib, { recursive: true })) {
  if (!file.endsWith('.ts')) continue;
  const path = join(lib, file);
  const from = room(path);
  const allowed = MAY[from];
  if (allowed === undefined) {
    console.error(`lib/${file}: no layer is known for ${from} (add it to tools/check-layers.mjs)`);
    wrong++;
    continue;
  }
  const statements = readFileSync(path, 'utf8').matchAll(
    /^(?:import|export)\b[^;]*?from '(\.{1,2}\/[^']+)'/gm,
  );
  for (const [statement, specifier] of statements) {
    const to = room(resolve(dirname(path), specifier));
    if (to === from || allowed.includes(to)) continue;
    if (to === 'native' && isTypeOnly(statement) && from !== 'virtio') continue;
    console.error(`lib/${file}: ${from} must not import ${to} (${specifier})`);
    wrong++;
  }
}
process.exitCode = wrong === 0 ? 0 : 1;
