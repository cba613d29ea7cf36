import t from 'tap';
import { rehearse } from '../../lib/reactor/worker.ts';

const OPTIONS = { pollUs: 0, policy: 'auto', engine: 'auto', rehearse: true } as const;

/** Tables whose rehearsal does what `steps` does. */
const tables = (steps: () => Generator<void>) => ({ models: {}, memories: {}, rehearse: steps });

t.test('orders are carried out before each step of a rehearsal', async (t) => {
  const log: string[] = [];
  const loop = { takeOrders: () => log.push('orders') > 0 };
  rehearse(
    loop,
    tables(function* () {
      log.push('first');
      yield;
      log.push('second');
    }),
    OPTIONS,
  );
  t.same(log, ['orders', 'first', 'orders', 'second']);
});

t.test('ordered to exit, the thread ends its rehearsal at once', async (t) => {
  let orders = 3;
  let ended = false;
  rehearse(
    { takeOrders: () => --orders > 0 },
    tables(function* () {
      try {
        for (;;) yield;
      } finally {
        ended = true;
      }
    }),
    OPTIONS,
  );
  t.ok(ended, 'it gave back what it held');
});

t.test('a rehearsal that fails is no failure of the thread', async (t) => {
  const loop = { takeOrders: () => true };
  for (const name of ['at once', 'later']) {
    t.doesNotThrow(
      () =>
        rehearse(
          loop,
          tables(function* () {
            if (name === 'later') yield;
            throw new Error('EMFILE');
          }),
          OPTIONS,
        ),
      name,
    );
  }
});

t.test('a thread that is not to rehearse does not', async (t) => {
  const never = tables(function* () {
    t.fail('rehearsed');
    yield;
  });
  rehearse({ takeOrders: () => true }, never, { ...OPTIONS, rehearse: false });
  rehearse({ takeOrders: () => true }, { models: {}, memories: {} }, OPTIONS);
  t.pass();
});
