import t from 'tap';
import { inMachine } from './run.ts';

for (const kernel of ['6.12', '7.2'] as const) {
  await inMachine(t, {
    name: 'a disk behind vhost_vdpa, memory exchanged a thousand times under load',
    program: ['vhost-vdpa.mjs', '1000'],
    kernel,
    timeout: 1200,
  });
}
