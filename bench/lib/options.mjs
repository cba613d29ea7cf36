// What the benchmarks have in common: their options, and a folder that goes when they end.
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const COMMON = {
  json: { type: 'boolean', default: false },
  quick: { type: 'boolean', default: false },
};

/** Those of a benchmark that measures this machine. */
const HERE = {
  first: { type: 'boolean', default: false },
  dir: { type: 'string', default: '/var/tmp' },
};

/** The command line's; `own` are a benchmark's own, as `parseArgs` takes them. */
export function parseOptions(own = {}) {
  return parseArgs({ options: { ...COMMON, ...own } }).values;
}

/** The same, with `--first` and `--dir`. */
export function parseOptionsHere(own = {}) {
  return parseOptions({ ...HERE, ...own });
}

/** Make a folder under `--dir`, removed however this process ends; returns its path. */
export function createFolder({ dir }) {
  const folder = mkdtempSync(join(dir, 'vduse-bench-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));
  return folder;
}
