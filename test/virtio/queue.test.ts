import t from 'tap';
import { MockMemory, PackedDriver, SplitDriver } from '../../lib/testing/index.ts';
import { Access, Chain, createQueue, Popped } from '../../lib/virtio/index.ts';
import { buffer, kinds, packedRig, segments, splitRig, take } from './harness.ts';

// What split and packed queues have in common.
for (const { name, rig: build } of kinds) {
  t.test(`${name}: every layout of a chain arrives in order`, async (t) => {
    for (const indirect of [false, true]) {
      for (const [readable, writable] of [
        [1, 0],
        [0, 1],
        [1, 1],
        [2, 3],
        [4, 4],
      ] as const) {
        const rig = build();
        const r = Array.from({ length: readable }, (_, i) => buffer(rig.driver, 16 + i));
        const w = Array.from({ length: writable }, (_, i) => buffer(rig.driver, 100 + i));
        const id = rig.driver.add(r, w, { indirect });
        t.equal(take(rig), id);
        t.same(segments(rig.chain), {
          readable: r.map((b) => [b.address, b.length]),
          writable: w.map((b) => [b.address, b.length]),
        });
        t.equal(
          rig.chain.readableBytes,
          r.reduce((sum, b) => sum + b.length, 0),
        );
        t.equal(
          rig.chain.writableBytes,
          w.reduce((sum, b) => sum + b.length, 0),
        );
        t.equal(rig.queue.pop(rig.chain), Popped.None);
        t.equal(rig.queue.inFlight, 1);
        rig.queue.complete(id, 7);
        t.equal(rig.queue.inFlight, 0);
        t.same(rig.driver.poll(), [], 'nothing is seen before it is published');
        t.equal(rig.queue.publish(), true);
        t.same(rig.driver.poll(), [{ id, length: 7 }]);
        t.equal(rig.queue.publish(), false, 'nothing new, no signal');
        t.ok(rig.mock.intact);
      }
    }
  });

  t.test(`${name}: a chain record copies across segments`, async (t) => {
    const rig = build();
    const r = [buffer(rig.driver, 5), buffer(rig.driver, 100), buffer(rig.driver, 3)];
    const w = [buffer(rig.driver, 2), buffer(rig.driver, 90)];
    const bytes = Uint8Array.from({ length: 108 }, (_, i) => i + 1);
    rig.mock.write(r[0]!.address, bytes.subarray(0, 5));
    rig.mock.write(r[1]!.address, bytes.subarray(5, 105));
    rig.mock.write(r[2]!.address, bytes.subarray(105));
    rig.driver.add(r, w);
    take(rig);
    for (const [from, length, expected] of [
      [0, 108, 108],
      [3, 4, 4],
      [5, 3, 3],
      [4, 104, 104],
      [104, 50, 4],
      [108, 1, 0],
      [500, 1, 0],
    ] as const) {
      const into = new Uint8Array(120);
      t.equal(rig.chain.copyOut(from, into, 2, length), expected);
      t.same(into.subarray(2, 2 + expected), bytes.subarray(from, from + expected));
      t.ok(into.subarray(2 + expected).every((byte) => byte === 0));
    }
    t.equal(rig.chain.copyIn(1, bytes, 10, 91), 91);
    t.same(rig.mock.read(w[0]!.address, 2), Uint8Array.of(0, 11));
    t.same(rig.mock.read(w[1]!.address, 90), bytes.subarray(11, 101));
    t.equal(rig.chain.copyIn(91, bytes, 0, 4), 1);
    t.equal(rig.chain.copyIn(92, bytes, 0, 4), 0);
    t.ok(rig.mock.intact);
  });

  t.test(`${name}: chains complete in any order, each once`, async (t) => {
    const rig = build();
    const b = buffer(rig.driver, 16);
    const ids = [rig.driver.add([b], []), rig.driver.add([b, b], []), rig.driver.add([], [b])];
    for (const id of ids) t.equal(take(rig), id);
    t.equal(rig.queue.inFlight, 3);
    for (const id of [ids[2]!, ids[0]!, ids[1]!]) rig.queue.complete(id, id + 10);
    t.throws(() => rig.queue.complete(ids[0]!, 0), { code: 'ERR_VDUSE_RING' }, 'not twice');
    t.throws(() => rig.queue.complete(99, 0), { code: 'ERR_VDUSE_RING' }, 'no unknown head');
    rig.queue.publish();
    t.same(
      rig.driver.poll().map((used) => used.id),
      [ids[2], ids[0], ids[1]],
    );
  });

  t.test(`${name}: a batch becomes visible as a whole`, async (t) => {
    const rig = build();
    const b = buffer(rig.driver, 16);
    for (let i = 0; i < 5; i++) rig.driver.add([b], []);
    for (let i = 0; i < 5; i++) rig.queue.complete(take(rig), 0);
    t.equal(rig.driver.next(), false);
    rig.queue.publish();
    t.equal(rig.driver.poll().length, 5);
  });

  t.test(`${name}: a full ring, laps of it, and the wrap of every counter`, async (t) => {
    const rig = build({ size: 4, eventIndex: true });
    const b = buffer(rig.driver, 16);
    let taken = 0;
    // More than 65536 chains: split indices wrap, packed wrap counters turn many times.
    for (let lap = 0; lap < 17_000; lap++) {
      while (rig.driver.add([b], []) >= 0);
      if (!rig.driver.needsKick()) throw new Error(`no kick in lap ${lap}`);
      while (rig.queue.pop(rig.chain) === Popped.One) {
        rig.queue.complete(rig.chain.head, 0);
        taken++;
      }
      if (!rig.queue.publish()) throw new Error(`no signal in lap ${lap}`);
      if (rig.queue.enableKicks()) throw new Error(`chains left in lap ${lap}`);
      while (rig.driver.next());
      if (rig.driver.enableSignals()) throw new Error(`used entries left in lap ${lap}`);
    }
    t.equal(taken, 68_000);
    t.equal(rig.driver.outstanding, 0);
  });

  t.test(`${name}: a queue goes on where another left off`, async (t) => {
    for (const eventIndex of [false, true]) {
      let { driver, queue, mock, chain } = build({ size: 8, eventIndex });
      const b = buffer(driver, 16);
      for (let i = 0; i < 100; i++) {
        t.ok(driver.add([b, b], [b]) >= 0);
        take({ queue, chain });
        queue.complete(chain.head, i);
        t.equal(queue.publish(), true);
        t.same(
          driver.poll().map((used) => used.length),
          [i],
        );
        driver.enableSignals();
        if (i % 3 === 0) {
          queue = createQueue(mock.memory, { ...driver.layout, position: queue.position });
        }
      }
      t.equal(driver.add([b], []) >= 0, true, 'offered to nobody yet');
      queue = createQueue(mock.memory, { ...driver.layout, position: queue.position });
      t.equal(queue.available(), true, 'found without a kick');
      take({ queue, chain });
    }
  });

  t.test(`${name}: kicks are wanted only between enableKicks and disableKicks`, async (t) => {
    for (const eventIndex of [false, true]) {
      const rig = build({ eventIndex });
      const b = buffer(rig.driver, 16);
      t.equal(rig.queue.enableKicks(), false);
      t.equal(rig.driver.add([b], []) >= 0 && rig.driver.needsKick(), true);
      t.equal(rig.queue.available(), true);
      t.equal(rig.queue.enableKicks(), true, 'a chain that came before is reported');
      rig.queue.complete(take(rig), 0);
      t.equal(rig.queue.available(), false);
      rig.queue.publish();
      rig.driver.poll();
      rig.queue.disableKicks();
      t.equal(rig.driver.add([b], []) >= 0 && rig.driver.needsKick(), false);
      t.equal(rig.driver.add([b], []) >= 0 && rig.driver.needsKick(), false);
      take(rig);
      take(rig);
      t.equal(rig.queue.enableKicks(), false);
      t.equal(rig.driver.needsKick(), false, 'nothing was added since');
      t.equal(rig.driver.add([b, b], [b]) >= 0 && rig.driver.needsKick(), true);
    }
  });

  t.test(
    `${name}: kicks that were asked for and are not needed any more are not sent`,
    async (t) => {
      for (const eventIndex of [false, true]) {
        const rig = build({ eventIndex });
        const b = buffer(rig.driver, 16);
        t.equal(rig.queue.enableKicks(), false);
        rig.queue.disableKicks();
        t.equal(rig.driver.add([b], []) >= 0 && rig.driver.needsKick(), false);
        take(rig);
        t.equal(rig.queue.enableKicks(), false);
        t.equal(rig.driver.add([b], []) >= 0 && rig.driver.needsKick(), true);
      }
    },
  );

  t.test(`${name}: signals are sent as the driver asks`, async (t) => {
    for (const eventIndex of [false, true]) {
      const rig = build({ eventIndex });
      const b = buffer(rig.driver, 16);
      const round = (count: number): boolean => {
        for (let i = 0; i < count; i++) rig.driver.add([b], []);
        for (let i = 0; i < count; i++) rig.queue.complete(take(rig), 0);
        return rig.queue.publish();
      };
      t.equal(round(1), true, 'the first is always signalled');
      rig.driver.poll();
      rig.driver.disableSignals();
      t.equal(round(3), false);
      rig.driver.poll();
      t.equal(round(3), false);
      t.equal(rig.driver.enableSignals(), true, 'entries that came before are reported');
      rig.driver.poll();
      t.equal(rig.driver.enableSignals(), false);
      t.equal(round(2), true);
      t.equal(round(2), !eventIndex, 'with EVENT_IDX one signal is enough');
      rig.driver.poll();
    }
  });

  t.test(`${name}: without negotiation event indices are ignored`, async (t) => {
    const rig = build({ eventIndex: true });
    const queue = createQueue(rig.mock.memory, { ...rig.driver.layout, eventIndex: false });
    const b = buffer(rig.driver, 16);
    for (let i = 0; i < 4; i++) {
      rig.driver.add([b], []);
      take({ queue, chain: rig.chain });
      queue.complete(rig.chain.head, 0);
      t.equal(queue.publish(), true);
    }
  });

  t.test(`${name}: a failed head is in flight no more, its queue is broken`, async (t) => {
    const rig = build();
    const b = buffer(rig.driver, 16);
    const ids = [0, 1, 2].map(() => rig.driver.add([b], []));
    take(rig);
    take(rig);
    rig.queue.fail('no-status-byte', ids[1]!, 5);
    t.same(rig.queue.fault, { reason: 'no-status-byte', head: ids[1], detail: 5 });
    t.equal(rig.queue.inFlight, 1, 'a drain does not wait for it');
    t.equal(rig.queue.pop(rig.chain), Popped.Broken);
    t.equal(rig.queue.available(), false);
    t.equal(rig.queue.enableKicks(), false);
    rig.queue.disableKicks();
    rig.queue.fail('buffer-unmapped', -1, 0);
    t.equal(rig.queue.fault?.reason, 'no-status-byte', 'the first reason is kept');
    t.throws(() => rig.queue.fail('no-status-byte', ids[1]!, 0), { code: 'ERR_VDUSE_RING' });
    rig.queue.complete(ids[0]!, 1);
    t.equal(rig.queue.publish(), true, 'what was taken before is still answered');
    t.same(rig.driver.poll(), [{ id: ids[0], length: 1 }]);
    t.equal(rig.queue.inFlight, 0);
  });

  t.test(`${name}: a descriptor across regions becomes a segment each`, async (t) => {
    const rig = build();
    // Three neighbours, the middle one tiny.
    rig.mock.add(0x100000, 0x1001);
    rig.mock.add(0x101001, 3);
    rig.mock.add(0x101004, 0x1000);
    for (const indirect of [false, true]) {
      rig.driver.add(
        [{ address: 0x100ff0, length: 0x11 }],
        [{ address: 0x100fff, length: 0x100 }],
        { indirect },
      );
      take(rig);
      t.same(segments(rig.chain), {
        readable: [[0x100ff0, 0x11]],
        writable: [
          [0x100fff, 2],
          [0x101001, 3],
          [0x101004, 0xfb],
        ],
      });
    }
  });

  t.test(`${name}: descriptors of length zero are no segments`, async (t) => {
    const rig = build();
    const b = buffer(rig.driver, 16);
    const nowhere = { address: 0xdead_beef_0000, length: 0 };
    rig.driver.add([nowhere, b, nowhere], [nowhere, b]);
    take(rig);
    t.equal(rig.chain.count, 2);
    rig.driver.add([nowhere], [nowhere]);
    take(rig);
    t.equal(rig.chain.count, 0);
  });

  t.test(`${name}: addresses up to 2^53-1, lengths up to 2^32-1`, async (t) => {
    const rig = build();
    const start = 2 ** 53 - 0x1000 - 1;
    rig.mock.add(start, 0x1000);
    rig.driver.add([{ address: start + 1, length: 0xfff }], []);
    take(rig);
    t.same(segments(rig.chain).readable, [[start + 1, 0xfff]]);
    // A region said to be huge: its length is believed, its bytes are not touched.
    const tiny = rig.mock.create(0x2_0000_0000, 16);
    rig.mock.memory.add({ ...tiny, length: 2 ** 32 });
    rig.driver.add([], [{ address: 0x2_0000_0001, length: 2 ** 32 - 1 }]);
    take(rig);
    t.same(segments(rig.chain).writable, [[0x2_0000_0001, 2 ** 32 - 1]]);
    t.equal(rig.chain.writableBytes, 2 ** 32 - 1);
  });

  t.test(`${name}: an indirect table may straddle regions, at any alignment`, async (t) => {
    for (const shift of [0, 1, 2, 3, 4, 7, 15]) {
      const rig = build();
      // The border cuts through the second of three descriptors.
      rig.mock.add(0x100000, 0x1018);
      rig.mock.add(0x101018, 0x1000);
      const table = 0x101000 - shift;
      const b = buffer(rig.driver, 64);
      const scratch = build();
      scratch.driver.add([b, b], [b], { indirect: true });
      const at = scratch.driver.desc;
      const bytes = scratch.mock.read(at[0]! + at[1]! * 2 ** 32, 48);
      rig.mock.write(table, bytes);
      rig.driver.add([{ address: table, length: 48 }], []);
      const [low, high, length, word] = rig.driver.desc;
      t.same([low, high, length], [table, 0, 48]);
      rig.driver.desc[3] = name === 'split' ? 4 : word! | (4 << 16);
      take(rig);
      t.same(segments(rig.chain), {
        readable: [
          [b.address, 64],
          [b.address, 64],
        ],
        writable: [[b.address, 64]],
      });
    }
  });

  t.test(`${name}: an indirect table at any alignment within a region`, async (t) => {
    for (const shift of [1, 2, 3, 4, 6, 8]) {
      const rig = build();
      const b = buffer(rig.driver, 64);
      const c = buffer(rig.driver, 32);
      rig.driver.add([b], [c], { indirect: true });
      const [low] = rig.driver.desc;
      const table = rig.mock.read(low!, 32);
      const moved = rig.driver.allocate(64) + shift;
      rig.mock.write(moved, table);
      rig.driver.desc[0] = moved;
      take(rig);
      t.same(segments(rig.chain), {
        readable: [[b.address, 64]],
        writable: [[c.address, 32]],
      });
    }
  });

  t.test(`${name}: rings, tables and buffers beyond 2 GiB of a region`, async (t) => {
    const mock = new MockMemory();
    const region = mock.add(0x1_0000_0000, 0x8001_0000);
    const options = { size: 8, indirect: true, offset: 0x8000_0000 };
    const driver =
      name === 'split' ? new SplitDriver(region, options) : new PackedDriver(region, options);
    const rig = { queue: createQueue(mock.memory, driver.layout), chain: new Chain() };
    const b = buffer(driver, 64);
    for (const indirect of [false, true]) {
      const id = driver.add([b], [b], { indirect });
      take(rig);
      t.same(segments(rig.chain), { readable: [[b.address, 64]], writable: [[b.address, 64]] });
      rig.queue.complete(id, 9);
      rig.queue.publish();
      t.same(driver.poll(), [{ id, length: 9 }]);
    }
    t.ok(mock.intact);
  });

  t.test(`${name}: the first entries after a takeover are signalled`, async (t) => {
    // The driver's event is somewhere behind: a predecessor passed it and died before it signalled.
    const rig = build({ size: 8, eventIndex: true });
    const b = buffer(rig.driver, 16);
    for (let i = 0; i < 3; i++) {
      rig.driver.add([b], []);
      take(rig);
      rig.queue.complete(rig.chain.head, 0);
      rig.queue.publish();
    }
    const queue = createQueue(rig.mock.memory, {
      ...rig.driver.layout,
      position: rig.queue.position,
    });
    const publish = (): boolean => {
      rig.driver.add([b], []);
      take({ queue, chain: rig.chain });
      queue.complete(rig.chain.head, 0);
      return queue.publish();
    };
    t.equal(publish(), true);
    t.equal(publish(), false, 'the event was passed long ago');
  });

  t.test(`${name}: a long indirect chain of 1024 descriptors`, async (t) => {
    const mock = new MockMemory();
    const region = mock.add(0, 0x40000);
    const options = { size: 8, indirect: true };
    const driver =
      name === 'split' ? new SplitDriver(region, options) : new PackedDriver(region, options);
    const queue = createQueue(mock.memory, driver.layout);
    const chain = new Chain();
    const b = buffer(driver, 16);
    driver.add(new Array(1000).fill(b), new Array(24).fill(b), { indirect: true });
    t.equal(queue.pop(chain), Popped.One);
    t.equal(chain.count, 1024);
    t.equal(chain.readable, 1000);
    driver.add(new Array(1025).fill(b), [], { indirect: true });
    t.equal(queue.pop(chain), Popped.Broken);
    t.equal(queue.fault?.reason, 'chain-too-long');
  });

  t.test(`${name}: memory that is read-only or write-only serves for that`, async (t) => {
    const rig = build();
    rig.mock.add(0x100000, 0x1000, Access.Read);
    rig.mock.add(0x200000, 0x1000, Access.Write);
    rig.driver.add([{ address: 0x100000, length: 16 }], [{ address: 0x200000, length: 16 }]);
    take(rig);
    t.equal(rig.chain.count, 2);
  });

  t.test(`${name}: memory mapped on demand`, async (t) => {
    const asked: number[] = [];
    const mock: MockMemory = new MockMemory((address) => {
      asked.push(address);
      if (address >= 0x100000 && address < 0x101000) return mock.create(0x100000, 0x1000);
      return undefined;
    });
    const region = mock.add(0, 0x10000);
    const driver =
      name === 'split'
        ? new SplitDriver(region, { size: 8 })
        : new PackedDriver(region, { size: 8 });
    const queue = createQueue(mock.memory, driver.layout);
    const chain = new Chain();
    driver.add([{ address: 0x100010, length: 16 }], [{ address: 0x100f00, length: 0x100 }]);
    take({ queue, chain });
    t.same(asked, [0x100010], 'asked once, then known');
    driver.add([{ address: 0x100f00, length: 0x101 }], []);
    t.equal(queue.pop(chain), Popped.Broken);
    t.same(queue.fault?.detail, 0x101000);
    t.same(asked, [0x100010, 0x101000]);
  });
}

t.test(
  'virtio 1.3 §2.7.5.3.2: direct descriptors may be followed by an indirect one',
  async (t) => {
    const rig = splitRig();
    const b = buffer(rig.driver, 16);
    const c = buffer(rig.driver, 32);
    // A table made by the driver for another head, linked to by hand; WRITE there is to be ignored.
    const inner = rig.driver.add([c], [b], { indirect: true });
    rig.driver.add([b], [b]);
    take(rig);
    rig.driver.desc[inner * 4 + 3] = 4 | 2;
    rig.driver.writeDescriptor(5, { address: b.address, length: 16, flags: 1, next: inner });
    rig.queue.complete(inner, 0);
    rig.queue.publish();
    take(rig);
    rig.driver.offer(5);
    take(rig);
    t.same(segments(rig.chain), {
      readable: [
        [b.address, 16],
        [c.address, 32],
      ],
      writable: [[b.address, 16]],
    });
  },
);

t.test('virtio 1.3 §2.7.13.1: a direct chain may use the whole table, in any order', async (t) => {
  const rig = splitRig({ size: 16 });
  const b = buffer(rig.driver, 16);
  for (let i = 0; i < 16; i++) {
    const flags = i === 15 ? 2 : 1;
    rig.driver.writeDescriptor((i * 5) % 16, {
      address: b.address,
      length: i + 1,
      flags,
      next: ((i + 1) * 5) % 16,
    });
  }
  rig.driver.offer(0);
  take(rig);
  t.same(
    [...rig.chain.lengths.subarray(0, rig.chain.count)],
    Array.from({ length: 16 }, (_, i) => i + 1),
  );
});

t.test('virtio 1.3 §2.7.7.2: the flag without EVENT_IDX, used_event with it', async (t) => {
  const plain = splitRig();
  const b = buffer(plain.driver, 16);
  plain.driver.avail[0] = 1;
  plain.driver.add([b], []);
  plain.queue.complete(take(plain), 0);
  t.equal(plain.queue.publish(), false, 'NO_INTERRUPT');

  const rig = splitRig({ eventIndex: true, size: 16 });
  rig.driver.avail[0] = 1;
  const usedEvent = 2 + 16;
  const publish = (count: number): boolean => {
    for (let i = 0; i < count; i++) rig.driver.add([b], []);
    for (let i = 0; i < count; i++) rig.queue.complete(take(rig), 0);
    const signal = rig.queue.publish();
    rig.driver.poll();
    return signal;
  };
  t.equal(publish(1), true, 'the flag is ignored');
  rig.driver.avail[usedEvent] = 4;
  t.equal(publish(3), false, 'entries 1, 2, 3');
  t.equal(publish(1), true, 'entry 4');
  t.equal(publish(2), false, 'entries 5, 6');
  rig.driver.avail[usedEvent] = 9;
  t.equal(publish(8), true, 'entries 7 to 14');
});

t.test('split: used_event and avail_event across the wrap at 65536', async (t) => {
  const rig = splitRig({ eventIndex: true, position: { avail: 65534, used: 65534 } });
  const b = buffer(rig.driver, 16);
  const round = (count: number): boolean => {
    for (let i = 0; i < count; i++) rig.driver.add([b], []);
    for (let i = 0; i < count; i++) rig.queue.complete(take(rig), 0);
    const signal = rig.queue.publish();
    rig.driver.poll();
    return signal;
  };
  t.equal(rig.queue.enableKicks(), false);
  t.equal(round(1), true);
  t.equal(rig.driver.needsKick(), true);
  rig.driver.avail[2 + 8] = 1;
  t.equal(round(2), false, 'entries 65535, 0');
  t.equal(rig.driver.needsKick(), false);
  t.equal(rig.queue.enableKicks(), false);
  t.equal(rig.driver.used[2 + 4 * 8], 1);
  t.equal(round(1), true, 'entry 1');
  t.equal(rig.driver.needsKick(), true);
  t.same(rig.queue.position, { avail: 2, used: 2 });
});

t.test('virtio 1.3 §2.8.10: the event offset holds for one lap of the ring', async (t) => {
  const rig = packedRig({ size: 5, eventIndex: true });
  const b = buffer(rig.driver, 16);
  const DESC = 2 << 16;
  const round = (count: number): boolean => {
    for (let i = 0; i < count; i++) rig.driver.add([b], []);
    for (let i = 0; i < count; i++) rig.queue.complete(take(rig), 0);
    const signal = rig.queue.publish();
    rig.driver.poll();
    return signal;
  };
  t.equal(round(1), true);
  rig.driver.driverArea[0] = DESC | 0x8000 | 0;
  t.equal(round(1), false, 'slot 1, with an event at slot 0');
  rig.driver.driverArea[0] = DESC | 0x8000 | 3;
  t.equal(round(1), false, 'slot 2');
  t.equal(round(1), true, 'slot 3');
  rig.driver.driverArea[0] = DESC | 1;
  t.equal(round(1), false, 'slot 4, the last of the lap');
  t.equal(round(2), true, 'slots 0, 1 of the next lap');
  rig.driver.driverArea[0] = DESC | 0x8000 | 2;
  t.equal(round(2), false, 'slots 2, 3 with the other wrap counter');
  rig.driver.driverArea[0] = DESC | 0x8000 | 0;
  t.equal(round(3), true, 'slots 4, 0, 1: over the border');
  rig.driver.driverArea[0] = DESC | 0x7fff;
  t.equal(round(5), false, 'an offset outside the ring is never reached');
  rig.driver.driverArea[0] = 0;
  t.equal(round(1), true, 'ENABLE');
  rig.driver.driverArea[0] = 1 << 16;
  t.equal(round(1), false, 'DISABLE');
  rig.driver.driverArea[0] = 3 << 16;
  t.equal(round(1), true, 'the reserved value: rather once too often');
});

t.test('virtio 1.3 §2.8.4: a used length counts only with the WRITE flag', async (t) => {
  const rig = packedRig();
  const b = buffer(rig.driver, 16);
  rig.driver.add([], [b]);
  rig.driver.add([b], []);
  rig.queue.complete(take(rig), 16);
  rig.queue.complete(take(rig), 0);
  rig.queue.publish();
  t.equal((rig.driver.desc[3]! >>> 16) & 2, 2);
  t.equal((rig.driver.desc[7]! >>> 16) & 2, 0);
});

t.test('virtio 1.3 §2.8.6: chains that cross the end of the ring, used out of order', async (t) => {
  const rig = packedRig({ size: 7 });
  const b = buffer(rig.driver, 16);
  for (let i = 0; i < 50; i++) {
    const first = rig.driver.add([b, b], [b]);
    const second = rig.driver.add([b], [b, b]);
    t.equal(take(rig), first);
    t.equal(rig.chain.count, 3);
    t.equal(take(rig), second);
    rig.queue.complete(second, 2);
    rig.queue.complete(first, 1);
    rig.queue.publish();
    t.same(rig.driver.poll(), [
      { id: second, length: 2 },
      { id: first, length: 1 },
    ]);
  }
  t.equal(rig.driver.outstanding, 0);
});

t.test('virtio 1.3 §2.8.7: in a packed table all flags but WRITE are ignored', async (t) => {
  const rig = packedRig();
  const b = buffer(rig.driver, 16);
  rig.driver.add([b, b], [b], { indirect: true });
  const table = (rig.driver.desc[0]! - rig.region.start) / 4;
  for (const [i, flags] of [
    [0, 0xfffd],
    [1, 4],
    [2, 0xffff],
  ] as const) {
    rig.region.u32[table + 4 * i + 3] = (flags << 16) | 0x1234;
  }
  rig.driver.desc[3] = rig.driver.desc[3]! | (2 << 16);
  take(rig);
  t.same(segments(rig.chain), {
    readable: [
      [b.address, 16],
      [b.address, 16],
    ],
    writable: [[b.address, 16]],
  });
});
