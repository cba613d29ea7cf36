// Runs several guest programs one after the other in one machine, each a subtest: booting is slow.
//   several.mjs PROGRAM...
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** A program that hangs must not take the others' time. */
const LIMIT_S = 600;

const programs = process.argv.slice(2);
let failed = 0;

console.log('TAP version 14');
for (const [index, program] of programs.entries()) {
  const status = await runProgram(program);
  if (status !== 0) failed++;
  console.log(`${status === 0 ? 'ok' : 'not ok'} ${index + 1} - ${program}`);
}
console.log(`1..${programs.length}`);
process.exitCode = failed === 0 ? 0 : 1;

function runProgram(program) {
  return new Promise((resolve) => {
    const start = Date.now();
    const path = fileURLToPath(new URL(program, import.meta.url));
    const child = spawn(process.execPath, [path], {
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: LIMIT_S * 1000,
      killSignal: 'SIGKILL',
    });
    console.log(`# Subtest: ${program}`);
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (!line.startsWith('TAP version')) console.log(`    ${line}`);
    });
    child.on('close', (code, signal) => {
      console.log(`# ${program}: ${((Date.now() - start) / 1000).toFixed(1)} s`);
      resolve(code ?? signal);
    });
  });
}
