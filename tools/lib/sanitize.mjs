// The addon under AddressSanitizer and UndefinedBehaviorSanitizer, for a run of the unit tests.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { resolve } from 'node:path';

const ADDON = resolve('build/sanitize/Release/vduse.node');
const REPORTS = resolve('build/sanitize/reports');

/**
 * What a process and all that it starts need in their environment to load that addon. Forgets the
 * reports of earlier runs. Throws where the compiler has no such library.
 */
export function sanitizerEnvironment() {
  rmSync(REPORTS, { recursive: true, force: true });
  mkdirSync(REPORTS, { recursive: true });
  return {
    VDUSE_ADDON: ADDON,
    // The runtime must come first, and find the C++ library's functions when it starts.
    LD_PRELOAD: ['libasan.so', 'libstdc++.so'].map(library).join(':'),
    // Node ends without freeing what it has; a SIGBUS is the addon's own to handle.
    ASAN_OPTIONS: `detect_leaks=0:handle_sigbus=0:log_path=${REPORTS}/asan`,
    UBSAN_OPTIONS: `print_stacktrace=1:log_path=${REPORTS}/ubsan`,
  };
}

/** The compiler's own copy of a library. */
function library(name) {
  const compiler = process.env.CXX ?? 'g++';
  const path = execFileSync(compiler, [`-print-file-name=${name}`], { encoding: 'utf8' }).trim();
  if (path === name) throw new Error(`${name}: ${compiler} has none (install the compiler's own)`);
  return path;
}

/** True when the built package, started in this environment, loads that addon and ASan. */
export function isSanitized(environment) {
  const program = `
    await import('./dist/native/index.js');
    const maps = (await import('node:fs')).readFileSync('/proc/self/maps', 'utf8');
    const loaded = ['${ADDON}', '/libasan.so'].every((name) => maps.includes(name));
    process.exit(loaded ? 0 : 1);`;
  const done = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  return done.status === 0;
}

/** What the sanitizers have reported in any process, each report's text. */
export function sanitizerReports() {
  return readdirSync(REPORTS).map((file) => readFileSync(`${REPORTS}/${file}`, 'utf8'));
}
