import fc from 'fast-check';
import t from 'tap';
import { FRAME_BYTES, Result } from '../../lib/rpmb/frame.ts';
import { RPMB_COUNTERS, RpmbCounter, RpmbQueueDevice } from '../../lib/rpmb/queue-device.ts';
import { MemoryStore, MockMemory, SplitDriver } from '../../lib/testing/index.ts';
import {
  Chain,
  createQueue,
  type FaultReason,
  Popped,
  type QueuePort,
} from '../../lib/virtio/index.ts';
import {
  Bench,
  concat,
  dataRead,
  dataWrite,
  getCounter,
  KEY,
  makeState,
  pattern,
  programKey,
  read,
  resultRead,
} from './harness.ts';

const FRESH = makeState();
const KEYED = makeState({ key: KEY });

class Port implements QueuePort {
  readonly answers: { head: number; written: number }[] = [];

  complete(head: number, written: number): void {
    this.answers.push({ head, written });
  }

  fail(reason: FaultReason): void {
    throw new Error(`a chain failed: ${reason}`);
  }
}

/** Cuts of a byte run into pieces. */
function cuts(length: number): fc.Arbitrary<number[]> {
  if (length === 0) return fc.constant([]);
  return fc
    .array(fc.integer({ min: 1, max: Math.max(1, length - 1) }), { maxLength: 20 })
    .map((points) => {
      const borders = [...new Set([0, ...points.filter((p) => p < length), length])];
      borders.sort((a, b) => a - b);
      return borders.slice(1).map((border, i) => border - borders[i]!);
    });
}

/** A chain in memory of its own, guarded. */
class TestChain {
  readonly chain = new Chain();
  readonly memory = new MockMemory();

  constructor(
    head: number,
    request: Uint8Array,
    writable: number,
    inCut?: number[],
    outCut?: number[],
  ) {
    this.chain.reset(head);
    let done = 0;
    for (const length of inCut ?? (request.length > 0 ? [request.length] : [])) {
      const region = this.memory.create(0, length);
      region.u8.set(request.subarray(done, done + length));
      this.chain.add(region, 0, length, false);
      done += length;
    }
    for (const length of outCut ?? (writable > 0 ? [writable] : [])) {
      const region = this.memory.create(0, length);
      region.u8.fill(0xee);
      this.chain.add(region, 0, length, true);
    }
  }

  get written(): Uint8Array {
    const all = new Uint8Array(this.chain.writableBytes);
    let at = 0;
    for (let i = this.chain.readable; i < this.chain.count; i++) {
      all.set(this.chain.regions[i]!.u8, at);
      at += this.chain.lengths[i]!;
    }
    return all;
  }
}

function setup(state = KEYED) {
  const bench = new Bench(state.slice());
  const port = new Port();
  const counters = new Float64Array(RPMB_COUNTERS);
  return { bench, port, counters, queue: new RpmbQueueDevice(bench.device, port, counters) };
}

t.test('frames may be cut over descriptors in any way', async (t) => {
  const requests = fc.constantFrom(
    { request: concat(dataWrite({ data: pattern(3, 1) }), resultRead()), frames: 1 },
    { request: dataWrite({ data: pattern(2, 1) }), frames: 0 },
    { request: dataRead(5, 4), frames: 4 },
    { request: getCounter(), frames: 1 },
  );
  const shapes = requests.chain(({ request, frames }) =>
    fc.integer({ min: 0, max: 700 }).chain((more) =>
      fc.record({
        request: fc.constant(request),
        frames: fc.constant(frames),
        room: fc.constant(frames * FRAME_BYTES + more),
        inCut: cuts(request.length),
        outCut: cuts(frames * FRAME_BYTES + more),
      }),
    ),
  );
  fc.assert(
    fc.property(shapes, ({ request, frames, room, inCut, outCut }) => {
      const { queue, port } = setup();
      const chain = new TestChain(9, request, room, inCut, outCut);
      queue.begin(chain.chain);
      const expected = new Bench(KEYED.slice()).send(request, frames);
      const written = chain.written;
      return (
        port.answers.length === 1 &&
        port.answers[0]!.head === 9 &&
        port.answers[0]!.written === frames * FRAME_BYTES &&
        Buffer.compare(written.subarray(0, expected.length), expected) === 0 &&
        written.subarray(expected.length).every((byte) => byte === 0xee) &&
        chain.memory.intact
      );
    }),
    { numRuns: 200 },
  );
  t.pass();
});

t.test('trap: a chain that is no request is completed with nothing written', async (t) => {
  const { bench, queue, port, counters } = setup();
  const chains: [string, TestChain][] = [
    ['no readable byte', new TestChain(0, new Uint8Array(0), 512)],
    ['nothing at all', new TestChain(1, new Uint8Array(0), 0)],
    ['part of a frame', new TestChain(2, new Uint8Array(511), 512)],
    ['a frame and a byte', new TestChain(3, concat(getCounter(), new Uint8Array(1)), 512)],
    ['no writable byte', new TestChain(4, getCounter(), 0)],
    ['not room for a frame', new TestChain(5, getCounter(), 511)],
    ['a huge one of nothing', new TestChain(6, new Uint8Array(600 * 512), 0)],
  ];
  for (const [name, { chain, written, memory }] of chains) {
    queue.begin(chain);
    t.same(port.answers.at(-1), { head: chain.head, written: 0 }, name);
    t.ok(written.every((byte) => byte === 0xee) && memory.intact);
  }
  t.equal(counters[RpmbCounter.Requests], 7);
  t.equal(counters[RpmbCounter.Errors], 7);
  t.equal(bench.device.counter, 0);
});

t.test('what is longer than any request is refused by its clause', async (t) => {
  const { queue, port } = setup();
  const long = new TestChain(3, concat(dataWrite({ data: pattern(200, 1) }), resultRead()), 512);
  queue.begin(long.chain);
  t.same(port.answers, [{ head: 3, written: 512 }]);
  t.match(read(long.written), { type: 0x0300, result: Result.GeneralFailure, mac: true });
});

t.test('memory that is unmapped under a waiting chain', async (t) => {
  const bytes = KEYED.slice();
  let store: MemoryStore | undefined;
  const bench = new Bench(bytes, { store: (sink) => (store = new MemoryStore(bytes, sink)) });
  const port = new Port();
  const queue = new RpmbQueueDevice(bench.device, port);
  const first = new TestChain(1, concat(dataWrite(), resultRead()), 512);
  const second = new TestChain(2, getCounter(), 512);
  queue.begin(first.chain);
  queue.begin(second.chain);
  first.memory.vanish(first.chain.regions[1]!);
  second.memory.vanish(second.chain.regions[0]!);
  while (store!.pending > 0) store!.run();
  t.same(port.answers, [
    { head: 1, written: 0 },
    { head: 2, written: 0 },
  ]);
  t.equal(bench.device.counter, 1, 'the write itself was whole');
});

t.test('requests are executed in order, however slow the store', async (t) => {
  const bytes = KEYED.slice();
  let store: MemoryStore | undefined;
  const bench = new Bench(bytes, { store: (sink) => (store = new MemoryStore(bytes, sink)) });
  const port = new Port();
  const queue = new RpmbQueueDevice(bench.device, port);
  const chains = [
    new TestChain(0, concat(dataWrite({ counter: 0, data: pattern(1, 1) }), resultRead()), 512),
    new TestChain(1, getCounter(), 512),
    new TestChain(2, dataRead(0, 1), 512),
    new TestChain(3, concat(dataWrite({ counter: 1, data: pattern(1, 2) }), resultRead()), 512),
    new TestChain(4, new Uint8Array(3), 512),
    new TestChain(5, dataRead(0, 1), 512),
  ];
  // The record is the queue's scratch: it is used again for the next chain.
  const scratch = new Chain();
  for (const { chain } of chains) {
    scratch.reset(chain.head);
    for (let i = 0; i < chain.count; i++) {
      const writable = i >= chain.readable;
      scratch.add(chain.regions[i]!, chain.offsets[i]!, chain.lengths[i]!, writable);
    }
    queue.begin(scratch);
  }
  scratch.reset(77);
  t.same(port.answers, [], 'nothing is answered before its sync');
  store!.run(2);
  t.equal(store!.operations.at(-1)!.kind, 'write');
  t.same(port.answers, [], 'and nothing before the data area is written');
  while (store!.pending > 0) store!.run(1);
  t.same(
    port.answers.map(({ head }) => head),
    [0, 1, 2, 3, 4, 5],
  );
  const replies = chains.map(({ written }) => read(written));
  t.match(replies[0], { result: 0, counter: 1 });
  t.match(replies[1], { result: 0, counter: 1, mac: true });
  t.same(replies[2]!.data, pattern(1, 1));
  t.match(replies[3], { result: 0, counter: 2 });
  t.same(replies[5]!.data, pattern(1, 2));
  t.same(
    store!.operations.map(({ kind }) => kind),
    ['write', 'flush', 'write', 'read', 'write', 'flush', 'write', 'read'],
    'one sync an authenticated write',
  );
  queue.reset();
  t.match(read(bench.send(resultRead())), { counter: 2 }, 'a reset leaves the last result');
});

t.test('frames that the guest changes while they are executed', async (t) => {
  const bytes = KEYED.slice();
  let store: MemoryStore | undefined;
  const bench = new Bench(bytes, { store: (sink) => (store = new MemoryStore(bytes, sink)) });
  const port = new Port();
  const queue = new RpmbQueueDevice(bench.device, port);
  const write = new TestChain(0, concat(dataWrite({ data: pattern(2, 1) }), resultRead()), 512);
  queue.begin(write.chain);
  write.chain.regions[0]!.u8.fill(0xff);
  while (store!.pending > 0) store!.run();
  t.match(read(write.written), { result: 0, counter: 1, mac: true });
  t.same(bench.data.subarray(0, 512), pattern(2, 1));
  const ask = new TestChain(1, dataRead(0, 2), 1024);
  queue.begin(ask.chain);
  ask.chain.regions[1]!.u8.fill(0xff);
  while (store!.pending > 0) store!.run();
  t.match(read(ask.written), { result: 0, mac: true });
  t.same(read(ask.written).data, pattern(2, 1), 'nothing of the guest is ever signed');
});

t.test('a thousand waiting chains that need no disk', async (t) => {
  const bytes = FRESH.slice();
  let store: MemoryStore | undefined;
  const bench = new Bench(bytes, { store: (sink) => (store = new MemoryStore(bytes, sink)) });
  const port = new Port();
  const queue = new RpmbQueueDevice(bench.device, port);
  queue.begin(new TestChain(0, concat(programKey(KEY), resultRead()), 512).chain);
  const chain = new TestChain(1, getCounter(2), 512).chain;
  for (let i = 0; i < 1000; i++) queue.begin(chain);
  t.equal(port.answers.length, 0);
  store!.run(1);
  store!.run(1);
  t.equal(port.answers.length, 1001);
});

t.test(
  'over a ring, as a driver without VERSION_1 and with one writable buffer uses it',
  async (t) => {
    const memory = new MockMemory();
    const region = memory.add(0x10000, 1 << 20);
    const driver = new SplitDriver(region, { size: 64 });
    const ring = createQueue(memory.memory, driver.layout);
    const bench = new Bench(FRESH.slice());
    const queue = new RpmbQueueDevice(bench.device, ring);
    const chain = new Chain();
    const send = (frames: Uint8Array[], room: number) => {
      const buffers = frames.map((bytes) => {
        const address = driver.allocate(bytes.length);
        memory.write(address, bytes);
        return { address, length: bytes.length };
      });
      const into = { address: driver.allocate(Math.max(1, room)), length: room };
      driver.add(buffers, room > 0 ? [into] : []);
      while (ring.pop(chain) === Popped.One) queue.begin(chain);
      ring.publish();
      const [used, ...more] = driver.poll();
      if (used === undefined || more.length > 0) throw new Error('not one answer');
      return read(memory.read(into.address, used.length));
    };
    // As multi_cmd of a known guest: every command one buffer, the last one writable.
    t.match(send([programKey(KEY), resultRead()], 512), { type: 0x0100, result: 0 });
    const data = dataWrite({ data: pattern(2, 3) });
    t.match(send([data, resultRead()], 512), { type: 0x0300, result: 0, counter: 1 });
    t.same(send([dataRead(0, 2)], 1024).data, pattern(2, 3));
    t.same(send([dataWrite({ counter: 1 })], 0), { frames: 0 });
    const each = Array.from({ length: 32 }, (_, i) => i * FRAME_BYTES);
    const many = dataWrite({ counter: 2, data: pattern(32, 9) });
    const split = each.map((at) => many.subarray(at, at + FRAME_BYTES));
    t.match(send([...split, resultRead()], 512), { result: 0, counter: 3 }, 'a frame a descriptor');
    t.equal(ring.fault, undefined);
    t.ok(memory.intact);
  },
);

t.test('a chain of the whole queue: every byte a descriptor', async (t) => {
  const { queue, port } = setup();
  const chain = new TestChain(1, getCounter(), 512, Array(512).fill(1), Array(512).fill(1));
  queue.begin(chain.chain);
  t.same(port.answers, [{ head: 1, written: 512 }]);
  t.match(read(chain.written), { type: 0x0200, result: 0, mac: true });
});
