import { MessageChannel } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { IoKind, type IoPort, native } from '../../lib/native/index.ts';
import { ReactorLoop } from '../../lib/reactor/loop.ts';
import type { ModelQueue, QueueContext } from '../../lib/reactor/model.ts';
import { COUNTERS, type Order } from '../../lib/reactor/orders.ts';
import { PoolEngine } from '../../lib/reactor/pool-engine.ts';
import { MockMemory, SplitDriver } from '../../lib/testing/index.ts';
import { RING_INDEX } from '../../lib/virtio/index.ts';

const NOTHING = { offset: 0, length: 0 };

/** A queue whose requests are syncs, which run on the loop's thread; `ended` is called before each answer. */
function serveSyncs(t: Test, ended: () => void) {
  const eventfd = () => {
    const owned = native.eventfd(0);
    t.teardown(() => owned.close());
    return owned.fd;
  };
  const file = native.memfd('loop', 4096);
  const mock = new MockMemory();
  const driver = new SplitDriver(mock.add(0, 0x10000), { size: 256, eventIndex: true });
  const orders = eventfd();
  const kick = eventfd();
  const call = eventfd();
  const { port1, port2 } = new MessageChannel();
  const engine = new PoolEngine(native, 'auto');
  t.teardown(() => {
    engine.close();
    port1.close();
    file.close();
  });
  const createQueue = ({ port }: QueueContext, io: IoPort): ModelQueue => {
    const owner = io.register({
      rowCompleted: (head) => {
        ended();
        port.complete(head, 0);
      },
    });
    const begin = ({ head }: { head: number }) =>
      void io.table.push(owner, head, IoKind.Sync, file.fd, NOTHING, 0, 0);
    return { device: { begin, reset: () => {} }, release: () => io.unregister(owner) };
  };
  const tables = {
    models: {
      syncs: (_: unknown, io: IoPort) => ({
        createQueue: (context: QueueContext) => createQueue(context, io),
        close: () => {},
      }),
    },
    memories: {
      mock: () => ({
        memory: mock.memory,
        poisoned: () => false,
        replace: () => {},
        release: () => {},
      }),
    },
  };
  const options = { pollUs: 1, policy: 'auto', engine: 'pool', rehearse: false } as const;
  const loop = new ReactorLoop(native, engine, tables, port2, orders, options);
  const order = (what: Order) => {
    port1.postMessage({ id: 0, order: what });
    native.eventfdSignal(orders);
    loop.takeOrders();
  };
  order({
    type: 'add-device',
    device: {
      id: 1,
      model: 'syncs',
      modelOptions: undefined,
      memory: 'mock',
      memoryOptions: undefined,
      queues: 1,
      counters: new SharedArrayBuffer(COUNTERS * 8),
    },
  });
  order({
    type: 'start-queue',
    device: 1,
    queue: {
      index: 0,
      layout: driver.layout,
      kickFd: kick,
      signal: { fd: call, index: -1 },
      features: 0n,
      signalOnce: false,
    },
  });
  /** Send `count` requests at once and serve them. */
  const serve = (count: number) => {
    const header = { address: driver.allocate(16), length: 16 };
    for (let i = 0; i < count; i++) driver.add([header], []);
    native.eventfdSignal(kick);
    loop.step();
  };
  const signalled = () =>
    native.signalAndPoll(new Int32Array([call, 0]), 1, 0, new Int32Array(3), 0) > 0;
  return { driver, serve, signalled, call };
}

t.test('answers are shown to the driver while its batch goes on', (t) => {
  const shown: number[] = [];
  const { driver, serve } = serveSyncs(t, () => shown.push(driver.used[RING_INDEX]!));
  serve(128);
  t.equal(shown.length, 128);
  t.equal(driver.used[RING_INDEX], 128);
  shown.forEach((answers, ended) => {
    if (ended - answers > 8) t.fail(`${answers} answers shown when ${ended} requests had ended`);
  });
  t.end();
});

t.test(
  'a driver that sleeps is signalled once, before its batch ends and not at its beginning',
  (t) => {
    const states: boolean[] = [];
    const { serve, signalled, call } = serveSyncs(t, () => states.push(signalled()));
    serve(128);
    const first = states.indexOf(true);
    t.ok(first >= 64 && first < 112, `at request ${first}`);
    t.equal(native.eventfdRead(call), 1);
    t.end();
  },
);
