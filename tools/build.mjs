#!/usr/bin/env node
// Builds the package: `node tools/build.mjs [native] [ts] [prebuild] [sanitize]`, by default native
// and ts; sanitize makes another addon, with the sanitizers, in build/sanitize.
// Quiet when all is well.
import { spawnSync } from 'node:child_process';
import {
  accessSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const addon = join(root, 'build/Release/vduse.node');

function fail(why) {
  process.stderr.write(`vduse: build: ${why}\n`);
  process.exit(1);
}

function onPath(program) {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(resolve(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** `names`: any one of them will do; the first is what to ask for. */
function need(names, remedy) {
  if (!names.some((name) => name && onPath(name))) fail(`${names[0]} not found (${remedy})`);
}

/** Runs a command; shows what it printed only if it fails, after `undo`. */
function run(what, program, args, undo = () => {}) {
  const done = spawnSync(program, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (done.status === 0) return;
  undo();
  process.stderr.write(`${done.stdout ?? ''}${done.stderr ?? ''}`);
  fail(`${what} failed (${done.error?.message ?? done.signal ?? `status ${done.status}`})`);
}

/** The program a development dependency installs as `bin`. */
function bin(dependency, name) {
  let manifest;
  try {
    manifest = require.resolve(`${dependency}/package.json`);
  } catch {
    fail(`${dependency} not found (install the dependencies: npm ci)`);
  }
  return join(dirname(manifest), JSON.parse(readFileSync(manifest, 'utf8')).bin[name]);
}

function native() {
  buildAddon('build', []);
}

function sanitize() {
  buildAddon('build/sanitize', ['--CDVDUSE_SANITIZE=address,undefined']);
}

/** The addon in `folder`/Release; `definitions` are CMake's, as cmake-js takes them. */
function buildAddon(folder, definitions) {
  need(['cmake'], 'install it: apt-get install cmake');
  need(['make', 'ninja'], 'install it: apt-get install make');
  need(
    ['g++', 'clang++', 'c++', process.env.CXX?.split(' ')[0]],
    'install it: apt-get install g++',
  );
  const cmakeJs = bin('cmake-js', 'cmake-js');
  // CMake refuses a cache that was made where the checkout lay before.
  const cache = join(root, folder, 'CMakeCache.txt');
  if (existsSync(cache) && !readFileSync(cache, 'utf8').includes(`=${join(root, 'native')}\n`)) {
    rmSync(join(root, folder), { recursive: true });
  }
  const options = ['-d', 'native', '-O', folder, '--parallel', `${availableParallelism()}`];
  // A cache that was half made would never be completed.
  run('the addon', process.execPath, [cmakeJs, 'build', ...options, ...definitions], () =>
    rmSync(cache, { force: true }),
  );
  const made = join(root, folder, 'Release/vduse.node');
  if (!existsSync(made)) fail(`no ${made} came of it`);
}

function ts() {
  // What follows imports it, and would not say what to do where it is missing.
  bin('typescript', 'tsc');
  rmSync(join(root, 'dist'), { recursive: true, force: true });
  run('TypeScript', process.execPath, [join(root, 'tools/lib/library.mjs'), 'tsconfig.build.json']);
  run('the programs', process.execPath, [join(root, 'tools/lib/programs.mjs')]);
}

function prebuild() {
  if (!existsSync(addon)) native();
  const folder = join(root, `prebuilds/${process.platform}-${process.arch}`);
  const copy = join(folder, 'vduse.napi.glibc.node');
  need(['strip'], 'install it: apt-get install binutils');
  mkdirSync(folder, { recursive: true });
  copyFileSync(addon, copy);
  run('strip', 'strip', ['--strip-unneeded', copy]);
}

const steps = { native, ts, prebuild, sanitize };
const wanted = process.argv.slice(2);
for (const step of wanted.length > 0 ? wanted : ['native', 'ts']) {
  const known = Object.keys(steps);
  if (!known.includes(step)) fail(`unknown step '${step}' (one of ${known.join(', ')})`);
  steps[step]();
}
