import t from 'tap';
import { inMachine } from './run.ts';

// Time is counted in instructions: the figures repeat whatever else this machine does.
await inMachine(t, {
  name: 'batching, and the time to start',
  program: ['several.mjs', 'batching.mjs', 'startup.mjs'],
  options: ['--icount'],
  timeout: 1500,
});
