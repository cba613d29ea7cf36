import t from 'tap';
import { inMachine } from './run.ts';

for (const kernel of ['6.12', '7.2'] as const) {
  await inMachine(t, {
    name: 'a disk, raw and with a file system',
    program: ['disk.mjs'],
    kernel,
    options: ['--smp', '4'],
  });
}
