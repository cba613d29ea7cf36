import t from 'tap';
import { inMachine } from './run.ts';

// Both rings and both engines; all eight combinations are in disk.extended.test.ts.
for (const [kernel, programs] of [
  ['6.12', ['disk.mjs split io_uring', 'disk.mjs packed pool 3']],
  ['7.2', ['disk.mjs packed io_uring']],
] as const) {
  await inMachine(t, {
    name: 'a disk, raw and with a file system',
    program: ['several.mjs', ...programs],
    kernel,
    options: ['--smp', '4'],
  });
}
