import t from 'tap';
import { killLoop } from './kill-loop.ts';

t.setTimeout(120_000);

t.test('the daemon killed with SIGKILL under a writing client, 15 times', (t) => killLoop(t, 15));
