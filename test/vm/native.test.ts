import t from 'tap';
import { inMachine } from './run.ts';

for (const kernel of ['6.12', '7.2'] as const) {
  await inMachine(t, { name: 'the addon', program: ['native-smoke.mjs'], kernel, timeout: 120 });
}
