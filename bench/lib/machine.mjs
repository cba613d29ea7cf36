// The machine and the programs of a run: what a table of results is worthless without.
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** The command line program of this checkout. */
export const VDUSE = `${ROOT}/dist/cli/main.js`;

/** Describe the machine; `folder` is where the images are. */
export function machine(folder) {
  return {
    cpu: cpus()[0].model,
    cpus: cpus().length,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    kernel: release(),
    fileSystem: output('stat', '-f', '-c', '%T', folder),
    load: loadavg()[0],
    date: new Date().toISOString(),
  };
}

export function versions() {
  return {
    vduse: JSON.parse(readFileSync(`${ROOT}/package.json`, 'utf8')).version,
    commit: output('git', '-C', ROOT, 'describe', '--always', '--dirty', '--exclude', '*'),
    node: process.version,
    reference: output('qemu-storage-daemon', '--version').split('\n')[0],
    cc: output('cc', '--version').split('\n')[0],
  };
}

/** The first line a command prints, or what it failed with. */
function output(program, ...args) {
  const done = spawnSync(program, args, { encoding: 'utf8' });
  return done.status === 0 ? done.stdout.trim() : `unknown (${program} failed)`;
}

/** A tool the benchmark cannot do without. */
export function run(program, args) {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}
