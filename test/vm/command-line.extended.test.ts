import t from 'tap';
import { inMachine } from './run.ts';

await inMachine(t, {
  name: 'the command line',
  program: [
    'several.mjs',
    ...['lifecycle.mjs', 'takeover.mjs', 'takeover.mjs packed', 'holders.mjs', 'commands.mjs'],
    'bad-input.mjs',
  ],
  timeout: 1500,
});
