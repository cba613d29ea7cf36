import t from 'tap';
import { inMachine } from './run.ts';

// The other kernel, and a thousand exchanges of memory, are in vhost-vdpa.extended.test.ts.
await inMachine(t, { name: 'a disk behind vhost_vdpa', program: ['vhost-vdpa.mjs'] });
