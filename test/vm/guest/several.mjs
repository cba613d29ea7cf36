// Runs several guest programs one after the other in one machine, each a subtest: booting is slow.
//   several.mjs 'PROGRAM [ARGUMENT...]'...
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** A program that hangs must not take the others' time. */
const LIMIT_S = 600;

const lines = process.argv.slice(2);
let failed = 0;

console.log('TAP version 14');
for (const [index, line] of lines.entries()) {
  const status = await runProgram(line);
  if (status !== 0) failed++;
  console.log(`${status === 0 ? 'ok' : 'not ok'} ${index + 1} - ${line}`);
}
console.log(`1..${lines.length}`);
process.exitCode = failed === 0 ? 0 : 1;

function runProgram(line) {
  return new Promise((resolve) => {
    const start = Date.now();
    const [program, ...args] = line.split(' ');
    const path = fileURLToPath(new URL(program, import.meta.url));
    const child = spawn(process.execPath, [path, ...args], {
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: LIMIT_S * 1000,
      killSignal: 'SIGKILL',
    });
    console.log(`# Subtest: ${line}`);
    createInterface({ input: child.stdout }).on('line', (text) => {
      if (!text.startsWith('TAP version')) console.log(`    ${text}`);
    });
    child.on('close', (code, signal) => {
      console.log(`# ${line}: ${((Date.now() - start) / 1000).toFixed(1)} s`);
      resolve(code ?? signal);
    });
  });
}
