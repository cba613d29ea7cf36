import t from 'tap';
import { inMachine } from './run.ts';

// Both kernels, rings and engines; disk.extended.test.ts has all eight combinations, in full.
for (const [kernel, program] of [
  ['6.12', 'disk.mjs split io_uring'],
  ['7.2', 'disk.mjs packed pool 5'],
] as const) {
  await inMachine(t, {
    name: 'the addon; a disk, raw and with a file system',
    program: ['several.mjs', 'native-smoke.mjs', program],
    kernel,
    options: ['--smp', '4'],
  });
}
