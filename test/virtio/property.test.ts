import fc from 'fast-check';
import t from 'tap';
import { MockMemory, PackedDriver, SplitDriver } from '../../lib/testing/index.ts';
import {
  Access,
  Chain,
  createQueue,
  type GuestBuffer,
  type MemoryRegion,
  Popped,
  type QueuePosition,
  type Virtqueue,
} from '../../lib/virtio/index.ts';
import { RING, RING_BYTES, segments } from './harness.ts';

/** Buffers lie in three neighbouring regions with borders at odd places. */
const DATA = [
  [0x100000, 0x1003],
  [0x101003, 0x0005],
  [0x101008, 0x1ff8],
] as const;
const DATA_BYTES = 0x3000;

/** What a driver and a device may do next, in any order. */
type Step =
  | { do: 'add'; readable: GuestBuffer[]; writable: GuestBuffer[]; indirect: boolean }
  | { do: 'complete'; pick: number; written: number }
  | { do: 'pop' | 'publish' | 'poll' | 'kick' | 'sleep' | 'busy' | 'wait' | 'ignore' | 'rebuild' };

const someBuffer = fc
  .record({ at: fc.nat(DATA_BYTES - 1), length: fc.oneof(fc.nat(64), fc.nat(DATA_BYTES)) })
  .map(({ at, length }) => ({
    address: DATA[0][0] + at,
    length: Math.min(length, DATA_BYTES - at),
  }));
const plain = (...steps: Exclude<Step['do'], 'add' | 'complete'>[]): fc.Arbitrary<Step> =>
  fc.constantFrom(...steps).map((step) => ({ do: step }));
const someStep: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc
      .record({
        do: fc.constant('add' as const),
        readable: fc.array(someBuffer, { maxLength: 3 }),
        writable: fc.array(someBuffer, { maxLength: 3 }),
        indirect: fc.boolean(),
      })
      .filter((step) => step.readable.length + step.writable.length > 0),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('complete' as const),
      pick: fc.nat(7),
      written: fc.nat(0xffff_ffff),
    }),
  },
  { weight: 6, arbitrary: plain('pop') },
  { weight: 12, arbitrary: plain('publish', 'poll', 'kick') },
  { weight: 3, arbitrary: plain('sleep', 'busy', 'wait', 'ignore', 'rebuild') },
);

interface Offered {
  readonly id: number;
  readonly readable: GuestBuffer[];
  readonly writable: GuestBuffer[];
}

/** The truth the rings are compared with: lists of chains in each state, and who sleeps. */
class World {
  readonly mock = new MockMemory();
  readonly driver: SplitDriver | PackedDriver;
  queue: Virtqueue;
  readonly chain = new Chain();
  readonly offered: Offered[] = [];
  readonly taken: Offered[] = [];
  readonly staged: { id: number; length: number }[] = [];
  readonly shown: { id: number; length: number }[] = [];
  chains = 0;
  /** Chains added since the driver last asked whether to kick. */
  unkicked = 0;
  /** The device waits for a kick; the driver for a signal. */
  deviceSleeps = false;
  driverSleeps = false;

  constructor(packed: boolean, eventIndex: boolean, size: number, position?: QueuePosition) {
    const region = this.mock.add(RING, RING_BYTES);
    for (const [start, length] of DATA) this.mock.add(start, length);
    const options = {
      size,
      indirect: true,
      eventIndex,
      ...(position === undefined ? {} : { position }),
    };
    this.driver = packed ? new PackedDriver(region, options) : new SplitDriver(region, options);
    this.queue = createQueue(this.mock.memory, this.driver.layout);
  }

  run(step: Step): void {
    switch (step.do) {
      case 'add':
        this.#add(step.readable, step.writable, step.indirect);
        return;
      case 'kick':
        this.#kick();
        return;
      case 'pop':
        this.#pop();
        return;
      case 'complete': {
        if (this.taken.length === 0) return;
        const [chain] = this.taken.splice(step.pick % this.taken.length, 1);
        this.queue.complete(chain!.id, step.written);
        this.staged.push({ id: chain!.id, length: step.written });
        return;
      }
      case 'publish':
        this.#publish();
        return;
      case 'poll':
        same(this.driver.poll(), this.shown.splice(0), 'used entries, each once, in order');
        return;
      case 'sleep': {
        const more = this.queue.enableKicks();
        same(more, this.offered.length > 0, 'enableKicks tells what came meanwhile');
        this.deviceSleeps = !more;
        return;
      }
      case 'busy':
        this.deviceSleeps = false;
        this.queue.disableKicks();
        return;
      case 'wait': {
        const more = this.driver.enableSignals();
        same(more, this.shown.length > 0, 'enableSignals tells what came meanwhile');
        this.driverSleeps = !more;
        return;
      }
      case 'ignore':
        this.driverSleeps = false;
        this.driver.disableSignals();
        return;
      case 'rebuild':
        if (this.taken.length > 0 || this.staged.length > 0) return;
        this.queue = createQueue(this.mock.memory, {
          ...this.driver.layout,
          position: this.queue.position,
        });
        // A new queue has asked for nothing yet.
        this.deviceSleeps = false;
    }
  }

  /** Let both sides finish: everything offered comes back. */
  drain(): void {
    for (let i = 0; i < 1000 && this.offered.length > 0; i++) this.run({ do: 'pop' });
    while (this.taken.length > 0) this.run({ do: 'complete', pick: 0, written: 1 });
    this.run({ do: 'publish' });
    this.run({ do: 'poll' });
    same(this.driver.outstanding, 0, 'nothing is left');
    same(this.queue.inFlight, 0, 'nothing is in flight');
    same(this.queue.fault, undefined, 'no fault');
    same(this.mock.intact, true, 'nothing outside memory was written');
  }

  #add(readable: GuestBuffer[], writable: GuestBuffer[], indirect: boolean): void {
    const id = this.driver.add(readable, writable, { indirect });
    if (id < 0) return;
    this.offered.push({ id, readable, writable });
    this.unkicked++;
    same(this.queue.available(), true, 'available');
  }

  #kick(): void {
    const kick = this.driver.needsKick();
    // Chains that the device found by itself need none.
    if (this.deviceSleeps && this.offered.length > 0) same(kick, true, 'no kick is lost');
    if (this.unkicked === 0) same(kick, false, 'no kick for nothing');
    if (kick) this.deviceSleeps = false;
    this.unkicked = 0;
  }

  #pop(): void {
    const popped = this.queue.pop(this.chain);
    const expected = this.offered.shift();
    if (expected === undefined) {
      same(popped, Popped.None, 'nothing to take');
      return;
    }
    same(popped, Popped.One, 'chains are taken in the order offered');
    same(this.chain.head, expected.id, 'head');
    same(
      segments(this.chain),
      { readable: expected.readable.flatMap(split), writable: expected.writable.flatMap(split) },
      'segments',
    );
    this.chains++;
    this.taken.push(expected);
    same(this.queue.inFlight, this.taken.length, 'in flight');
  }

  #publish(): void {
    const signal = this.queue.publish();
    if (this.staged.length === 0) same(signal, false, 'no signal for nothing');
    else if (this.driverSleeps) same(signal, true, 'no signal is lost');
    if (signal) this.driverSleeps = false;
    this.shown.push(...this.staged.splice(0));
  }
}

/** What a buffer is cut into at the regions' borders. */
function split({ address, length }: GuestBuffer): number[][] {
  return DATA.flatMap(([start, bytes]) => {
    const from = Math.max(address, start);
    const to = Math.min(address + length, start + bytes);
    return to > from ? [[from, to - from]] : [];
  });
}

function same(actual: unknown, expected: unknown, what: string): void {
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${what}: ${a}, expected ${b}`);
}

for (const packed of [false, true]) {
  for (const eventIndex of [false, true]) {
    const name = `${packed ? 'packed' : 'split'}${eventIndex ? ', EVENT_IDX' : ''}`;
    t.test(`${name}: whatever both sides do, every head comes back once`, async (t) => {
      let chains = 0;
      // Split indices start near their wrap; packed rings have any size and start anywhere.
      const size = packed ? fc.integer({ min: 1, max: 9 }) : fc.constantFrom(1, 2, 4, 8);
      fc.assert(
        fc.property(
          size,
          fc.nat(20),
          fc.boolean(),
          fc.array(someStep, { maxLength: 300, size: 'max' }),
          (size, start, lap, steps) => {
            const at = packed ? (start % size) | (lap ? 0x8000 : 0) : (65536 - start) & 0xffff;
            const world = new World(packed, eventIndex, size, { avail: at, used: at });
            for (const step of steps) world.run(step);
            world.drain();
            chains += world.chains;
          },
        ),
        { numRuns: 1000 },
      );
      t.comment(`${chains} chains`);
      t.ok(chains > 5000);
    });
  }
}

/** Numbers a hostile driver would try, for a 32-bit word. */
const nastyWord = fc.oneof(
  fc.nat(0xffff_ffff),
  fc.nat(0xff),
  fc.constantFrom(0, 1, 0xffff, 0x10000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x20_0000),
  fc.nat(DATA_BYTES + 16).map((at) => DATA[0][0] + at),
  // Flags in the lower half (split) or upper half (packed), with something beside them.
  fc
    .record({ flags: fc.nat(7), other: fc.nat(9) })
    .map(({ flags, other }) => flags | (other << 16)),
  fc
    .record({ flags: fc.nat(7), state: fc.constantFrom(0, 0x80, 0x8000, 0x8080), id: fc.nat(9) })
    .map(({ flags, state, id }) => ((flags | state) << 16) | id),
);

/** Every segment of the chain is inside its region and allowed. */
function checkChain(chain: Chain, regions: readonly MemoryRegion[]): void {
  if (chain.readable > chain.count || chain.count > 4096) throw new Error('too many segments');
  for (let i = 0; i < chain.count; i++) {
    const region = chain.regions[i]!;
    const offset = chain.offsets[i]!;
    const length = chain.lengths[i]!;
    const access = i < chain.readable ? Access.Read : Access.Write;
    if (!regions.includes(region)) throw new Error('a region out of nowhere');
    if ((region.access & access) === 0) throw new Error('not allowed there');
    if (!(Number.isInteger(offset) && offset >= 0 && length > 0)) throw new Error('no segment');
    if (offset + length > region.length) throw new Error('beyond the region');
  }
}

for (const packed of [false, true]) {
  const name = packed ? 'packed' : 'split';
  t.test(`${name}: garbage in the ring and in its tables`, async (t) => {
    let broken = 0;
    let popped = 0;
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.array(
          fc.record({
            // Most garbage goes where the ring and the first tables are.
            edits: fc.array(fc.tuple(fc.oneof(fc.nat(0x60), fc.nat(0x200)), nastyWord), {
              maxLength: 12,
            }),
            add: fc.nat(4),
            indirect: fc.boolean(),
            pops: fc.nat(10),
            completions: fc.array(fc.nat(9), { maxLength: 6 }),
          }),
          { minLength: 1, maxLength: 12, size: 'max' },
        ),
        (eventIndex, turns) => {
          const mock = new MockMemory();
          const region = mock.add(RING, RING_BYTES);
          mock.add(0x100000, 0x1003, Access.Read);
          mock.add(0x101003, 5, Access.Write);
          mock.add(0x101008, 0x1ff8);
          const options = { size: 8, indirect: true, eventIndex };
          const driver = packed
            ? new PackedDriver(region, options)
            : new SplitDriver(region, options);
          const queue = createQueue(mock.memory, driver.layout);
          const chain = new Chain();
          const taken = new Set<number>();
          for (const turn of turns) {
            for (let i = 0; i < turn.add; i++) {
              driver.add([{ address: 0x100000, length: 16 }], [{ address: 0x101008, length: 16 }], {
                indirect: turn.indirect,
              });
            }
            for (const [at, word] of turn.edits) region.u32[at] = word;
            for (let i = 0; i < turn.pops; i++) {
              const result = queue.pop(chain);
              if (result !== Popped.One) {
                same(result === Popped.Broken, queue.fault !== undefined, 'broken, with a reason');
                break;
              }
              popped++;
              checkChain(chain, mock.memory.regions);
              if (taken.has(chain.head) || chain.head >= 8) throw new Error('head given out twice');
              taken.add(chain.head);
            }
            queue.enableKicks();
            for (const pick of turn.completions) {
              if (taken.delete(pick)) queue.complete(pick, pick);
            }
            queue.publish();
            queue.disableKicks();
            same(queue.inFlight, taken.size, 'in flight');
          }
          if (queue.fault !== undefined) broken++;
          same(mock.intact, true, 'nothing outside memory was written');
        },
      ),
      { numRuns: 2000 },
    );
    t.comment(`${popped} chains, ${broken} queues broken of 2000`);
    t.ok(popped > 1000 && broken > 500, 'the garbage is neither too wild nor too tame');
  });
}
