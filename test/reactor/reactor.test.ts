import t from 'tap';
import { native } from '../../lib/native/index.ts';
import { Reactor } from '../../lib/reactor/reactor.ts';

const OPTIONS = { pollUs: 0, policy: 'auto', engine: 'auto', rehearse: false } as const;

t.test('a thread that is closed may be seen to end before it has answered', async (t) => {
  const died: Error[] = [];
  const entry = new URL('./mute-worker.mjs', import.meta.url);
  const reactor = await Reactor.start(native, entry, OPTIONS, {
    fault: () => t.fail('a fault'),
    note: () => t.fail('a note'),
    died: (error) => died.push(error),
  });
  await reactor.close();
  t.same(died, []);
});
