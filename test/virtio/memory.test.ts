import fc from 'fast-check';
import t from 'tap';
import { MockMemory } from '../../lib/testing/index.ts';
import { Feature, GuestMemory, Status } from '../../lib/virtio/index.ts';

t.test('an address is found in the region that holds it, and in no other', async (t) => {
  const mock = new MockMemory();
  const high = mock.add(0x3000, 0x1000);
  const low = mock.add(0x1000, 0x1000);
  const next = mock.add(0x2000, 0x10);
  t.same(mock.memory.regions, [low, next, high], 'in the order of their addresses');
  for (const [address, region] of [
    [0xfff, undefined],
    [0x1000, low],
    [0x1fff, low],
    [0x2000, next],
    [0x200f, next],
    [0x2010, undefined],
    [0x2fff, undefined],
    [0x3000, high],
    [0x3fff, high],
    [0x4000, undefined],
    [2 ** 53, undefined],
  ] as const) {
    t.equal(mock.memory.find(address), region, `0x${address.toString(16)}`);
  }
});

t.test('regions that overlap or make no sense are refused', async (t) => {
  const mock = new MockMemory();
  mock.add(0x1000, 0x1000);
  for (const [start, length] of [
    [0x1000, 0x1000],
    [0x0, 0x1001],
    [0x1fff, 1],
    [0x1800, 0x10],
    [0x800, 0x4000],
  ] as const) {
    t.throws(() => mock.add(start, length), RangeError, `0x${start.toString(16)}+${length}`);
  }
  const region = mock.create(0x4000, 16);
  for (const [start, length] of [
    [-1, 16],
    [0.5, 16],
    [0x4000, 0],
    [0x4000, -16],
    [0x4000, 2 ** 32 + 1],
    [2 ** 53 - 1, 16],
    [Number.NaN, 16],
    [0x4000, Number.NaN],
  ] as const) {
    t.throws(() => mock.memory.add({ ...region, start, length }), RangeError, `${start}+${length}`);
  }
  t.equal(mock.memory.regions.length, 1);
});

t.test('an invalidation takes out every region it touches, not only those inside', async (t) => {
  for (const [start, last, left] of [
    [0, 0xfff, [0x1000, 0x2000, 0x4000]],
    [0, 0x1000, [0x2000, 0x4000]],
    [0x1fff, 0x1fff, [0x2000, 0x4000]],
    [0x1fff, 0x2000, [0x4000]],
    [0x3000, 0x3fff, [0x1000, 0x2000, 0x4000]],
    [0x2800, 0x4000, [0x1000]],
    [0, Number.MAX_SAFE_INTEGER, []],
  ] as const) {
    const mock = new MockMemory();
    for (const at of [0x1000, 0x2000, 0x4000]) mock.add(at, 0x1000);
    // The region found last is remembered, and must be forgotten.
    for (const at of [0x1000, 0x2000, 0x4000]) {
      mock.memory.find(at);
      const removed = mock.memory.removeRange(start, last);
      t.same(
        mock.memory.regions.map((region) => region.start),
        left,
      );
      for (const region of removed) {
        t.equal(mock.memory.find(region.start), undefined);
        mock.memory.add(region);
      }
    }
  }
});

t.test('clear takes out everything', async (t) => {
  const mock = new MockMemory();
  const region = mock.add(0x1000, 0x1000);
  mock.memory.find(0x1000);
  t.same(mock.memory.clear(), [region]);
  t.equal(mock.memory.find(0x1000), undefined);
});

t.test('memory is mapped on demand, and a miss is never remembered', async (t) => {
  const asked: number[] = [];
  const mock = new MockMemory();
  let ready = false;
  const memory = new GuestMemory((address) => {
    asked.push(address);
    return ready ? mock.create(0x1000, 0x1000) : undefined;
  });
  t.equal(memory.find(0x1800), undefined);
  t.equal(memory.find(0x1800), undefined);
  ready = true;
  t.equal(memory.find(0x1800)?.start, 0x1000);
  t.equal(memory.find(0x1fff)?.start, 0x1000);
  t.same(asked, [0x1800, 0x1800, 0x1800]);
  t.throws(() => memory.find(0x2000), RangeError, 'not what was asked for');
  t.equal(memory.regions.length, 1);
});

t.test('lookups agree with a search through all regions', async () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ start: fc.nat(200), length: fc.integer({ min: 1, max: 20 }) })),
      fc.array(fc.nat(230)),
      fc.array(fc.tuple(fc.nat(230), fc.nat(30))),
      (wanted, addresses, invalidations) => {
        const mock = new MockMemory();
        let truth: { start: number; length: number }[] = [];
        const check = (): void => {
          for (const address of addresses) {
            const expected = truth.find((r) => address >= r.start && address < r.start + r.length);
            const found = mock.memory.find(address);
            if (found?.start !== expected?.start || found?.length !== expected?.length) {
              throw new Error(`${address}: ${found?.start}, expected ${expected?.start}`);
            }
          }
        };
        for (const { start, length } of wanted) {
          try {
            mock.add(start, length);
            truth.push({ start, length });
          } catch {
            const free = truth.every(
              (r) => start + length <= r.start || r.start + r.length <= start,
            );
            if (free) throw new Error(`${start}+${length}: refused`);
          }
          check();
        }
        for (const [start, length] of invalidations) {
          mock.memory.removeRange(start, start + length);
          truth = truth.filter((r) => r.start > start + length || r.start + r.length <= start);
          check();
        }
      },
    ),
    { numRuns: 500 },
  );
});

t.test('virtio 1.3 §6, §2.1: feature and status bits', async (t) => {
  t.same(
    [Feature.IndirectDesc, Feature.EventIndex, Feature.Version1, Feature.AccessPlatform],
    [0x1000_0000n, 0x2000_0000n, 0x1_0000_0000n, 0x2_0000_0000n],
  );
  t.equal(Feature.RingPacked | Feature.InOrder, 0xc_0000_0000n);
  t.equal(Status.Acknowledge | Status.Driver | Status.FeaturesOk | Status.DriverOk, 0xf);
});
