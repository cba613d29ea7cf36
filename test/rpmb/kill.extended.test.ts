import t from 'tap';
import { killLoop } from './kill-loop.ts';

t.setTimeout(1_800_000);

t.test('the daemon killed with SIGKILL under a writing client, 300 times', (t) => killLoop(t, 300));
