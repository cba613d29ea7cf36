#!/usr/bin/env node
// Runs the checks and the tests of the checkout, and closes with "N passed, N failed".
// Called by tools/test, which has set up everything.
import { spawn } from 'node:child_process';
import { createWriteStream, mkdirSync, readdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { isSanitized, sanitizerEnvironment, sanitizerReports } from './sanitize.mjs';

const LOGS = 'build/test-logs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    unit: { type: 'boolean', default: false },
    vm: { type: 'boolean', default: false },
    extended: { type: 'boolean', default: false },
    sanitize: { type: 'boolean', default: false },
  },
});

const total = { passed: 0, failed: 0 };

/** Files of test/, by what they need. */
function testFiles() {
  const all = readdirSync('test', { recursive: true })
    .map((file) => `test/${file}`)
    .filter((file) => file.endsWith('.test.ts'))
    .filter((file) => values.extended || !file.endsWith('.extended.test.ts'))
    .sort();
  return {
    unit: all.filter((file) => !file.startsWith('test/vm/')),
    vm: all.filter((file) => file.startsWith('test/vm/')),
  };
}

/** Run a program; resolves with its status. Its lines go to `onLine`. */
function run(command, args, onLine, env = process.env) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'], env });
    createInterface({ input: child.stdout }).on('line', onLine);
    child.on('error', (error) => {
      console.log(`${command}: ${error.message}`);
      resolve(127);
    });
    child.on('close', (code, signal) => resolve(code ?? signal));
  });
}

/** A check that passes or fails as one. */
async function checkPoint(name, command, args) {
  const status = await run(command, args, (line) => console.log(line));
  point(status === 0, name);
}

function point(ok, name) {
  if (ok) total.passed++;
  else total.failed++;
  console.log(`${ok ? 'ok' : 'not ok'} - ${name}`);
}

/** The unit tests on the addon with the sanitizers; a report from any process is a failure. */
async function sanitized(files) {
  const environment = sanitizerEnvironment();
  point(isSanitized(environment), 'the sanitizers are at work');
  await tap('sanitize', files, ['--jobs=2', '--timeout=240'], { ...process.env, ...environment });
  const reports = sanitizerReports();
  for (const report of reports) console.log(report);
  point(reports.length === 0, `no report of the sanitizers (${reports.length})`);
}

/**
 * Run test files with tap. What is said on the way goes to a log; shown are each file's result,
 * what failed and why, and the figures that tests print as "# …".
 */
async function tap(name, files, args, env) {
  if (files.length === 0) return;
  const log = createWriteStream(`${LOGS}/${name}.tap`);
  let counted = false;
  let failureIndent = -1;
  const status = await run(
    'node_modules/.bin/tap',
    ['run', '--reporter=tap', ...args, ...files],
    (line) => {
      log.write(`${line}\n`);
      const [, pass = 0] = /^# \{.*pass: (\d+)/.exec(line) ?? [];
      const [, fail = 0] = /^# \{.*fail: (\d+)/.exec(line) ?? [];
      if (/^# \{ total:/.test(line)) {
        counted = true;
        total.passed += Number(pass);
        total.failed += Number(fail);
        return;
      }
      const indent = line.search(/\S/);
      const failed = /^\s*not ok\b/.test(line) && !/# (skip|todo)/i.test(line);
      if (failed) failureIndent = indent;
      else if (failureIndent >= 0 && indent <= failureIndent && !/^\s*(---|\.\.\.|#)/.test(line)) {
        failureIndent = -1;
      }
      const figure = /^\s+# (?!Subtest|time=|\{)/.test(line);
      if (failed || failureIndent >= 0 || figure || /^(not )?ok\b/.test(line)) console.log(line);
    },
    env,
  );
  log.end();
  if (!counted || (status !== 0 && total.failed === 0)) {
    console.log(
      `not ok - tap ended with status ${status}${counted ? '' : ' before it had counted'}`,
    );
    total.failed++;
  }
}

mkdirSync(LOGS, { recursive: true });
if (values.sanitize) {
  await sanitized(positionals.length > 0 ? positionals : testFiles().unit);
} else if (positionals.length > 0) {
  await tap('chosen', positionals, ['--jobs=1', '--timeout=1800']);
} else {
  const files = testFiles();
  if (values.unit) {
    await checkPoint('lint', 'node_modules/.bin/biome', ['check', '.']);
    await checkPoint('layers', 'node', ['tools/check-layers.mjs']);
    await checkPoint('types', 'node_modules/.bin/tsc', ['--noEmit']);
    await tap('unit', files.unit, ['--jobs=2', '--timeout=120']);
  }
  // One machine at a time: it has all CPUs, and its tests' own time limits count on them.
  if (values.vm) await tap('vm', files.vm, ['--jobs=1', '--timeout=2400']);
}
if (total.passed + total.failed === 0) {
  console.log('no test ran');
  total.failed++;
}
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed === 0 ? 0 : 1;
