import t from 'tap';
import { inMachine } from './run.ts';

// Every kernel, ring and engine that disk.test.ts has not had in full.
for (const [kernel, programs] of [
  ['6.12', ['disk.mjs packed io_uring', 'disk.mjs split pool', 'disk.mjs packed pool']],
  [
    '7.2',
    [
      ...['disk.mjs split io_uring', 'disk.mjs packed io_uring'],
      ...['disk.mjs split pool', 'disk.mjs packed pool'],
    ],
  ],
] as const) {
  await inMachine(t, {
    name: 'a disk on the other rings and engines',
    program: ['several.mjs', ...programs],
    kernel,
    options: ['--smp', '4'],
    timeout: 1800,
  });
}
