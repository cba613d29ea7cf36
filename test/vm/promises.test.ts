import t from 'tap';
import { inMachine } from './run.ts';

await inMachine(t, {
  name: 'flushes, a container, a hundred attachments',
  program: ['several.mjs', 'flush.mjs', 'container.mjs', 'soak.mjs'],
  timeout: 1500,
});
