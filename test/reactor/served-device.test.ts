import t from 'tap';
import type { IoEngine } from '../../lib/reactor/io-engine.ts';
import { COUNTERS } from '../../lib/reactor/orders.ts';
import type { QueueRunner } from '../../lib/reactor/queue-runner.ts';
import { ServedDevice } from '../../lib/reactor/served-device.ts';
import { MockMemory, SplitDriver } from '../../lib/testing/index.ts';

const RING_BYTES = 0x10000;

/** A device whose requests stay in flight until they are completed by hand. */
function serve(queues: number) {
  const mock = new MockMemory();
  const drivers = Array.from({ length: queues }, (_, index) => {
    const region = mock.add(0x100000 * (index + 1), RING_BYTES);
    return { region, driver: new SplitDriver(region, { size: 8 }) };
  });
  const replaced: unknown[] = [];
  const pending: (() => void)[] = [];
  const device = new ServedDevice(
    {
      id: 1,
      model: 'held',
      modelOptions: undefined,
      memory: 'mock',
      memoryOptions: undefined,
      queues,
      counters: new SharedArrayBuffer(queues * COUNTERS * 8),
    },
    {
      models: {
        held: () => ({
          createQueue: ({ port }) => ({
            device: {
              begin: ({ head }) => pending.push(() => port.complete(head, 0)),
              reset: () => {},
            },
            release: () => {},
          }),
          close: () => {},
        }),
      },
      memories: {
        mock: () => ({
          memory: mock.memory,
          poisoned: () => false,
          replace: (options) => {
            replaced.push(options);
            mock.memory.clear();
            for (const { region } of drivers) mock.memory.add(region);
          },
          release: () => {},
        }),
      },
    },
    {} as IoEngine,
    () => {},
  );
  /** Start a queue as the loop does. */
  const start = (index: number): QueueRunner => {
    const runner = device.startQueue({
      index,
      layout: drivers[index]!.driver.layout,
      kickFd: -1,
      signal: undefined,
      features: 0n,
      signalOnce: false,
    });
    t.ok(runner.attach(device.memory));
    return runner;
  };
  /** Make a request available. */
  const request = (index: number) => {
    const { driver } = drivers[index]!;
    driver.add([{ address: driver.allocate(16), length: 16 }], []);
  };
  return { device, start, request, pending, replaced };
}

t.test('memory is replaced when nothing is in flight', (t) => {
  const { device, start, request, pending, replaced } = serve(1);
  const runner = start(0);
  request(0);
  request(0);
  t.equal(runner.take(1), 1);
  let done = false;
  device.replaceMemory('new', () => {
    done = true;
  });
  t.notOk(device.drained, 'a request is in flight');
  t.equal(runner.take(1), 0, 'no further one is taken');
  pending.pop()!();
  t.ok(device.drained);
  const drained = device.finishDrain();
  t.same(replaced, ['new']);
  t.same(drained.resumed, [runner]);
  t.notOk(done, 'not answered before the queues are back');
  drained.done();
  t.ok(done);
  t.ok(runner.detached, 'its ring is looked up anew');
  t.ok(runner.attach(device.memory));
  t.equal(runner.take(1), 1, 'it goes on');
  t.end();
});

t.test('a queue started while memory is being replaced does not keep the old', (t) => {
  const { device, start, request, pending, replaced } = serve(2);
  const first = start(0);
  request(0);
  request(1);
  first.take(1);
  device.replaceMemory('new', () => {});
  const second = start(1);
  t.equal(second.take(1), 0, 'it takes nothing from memory that is about to go');
  pending.pop()!();
  t.ok(device.drained);
  const { resumed } = device.finishDrain();
  t.same(replaced, ['new']);
  t.same(resumed, [first, second]);
  t.ok(second.detached, 'its ring is looked up anew');
  t.ok(second.attach(device.memory));
  t.equal(second.take(1), 1, 'it goes on');
  t.end();
});

t.test('a queue started while others are being stopped goes on', (t) => {
  const { device, start, request, pending } = serve(2);
  const first = start(0);
  request(0);
  request(1);
  first.take(1);
  device.stop([0], () => {});
  const second = start(1);
  t.equal(second.take(1), 1);
  pending.shift()!();
  t.ok(device.drained);
  t.same(device.finishDrain().stopped, [first]);
  t.notOk(second.detached);
  t.same([...device.runners.values()], [second]);
  t.end();
});
