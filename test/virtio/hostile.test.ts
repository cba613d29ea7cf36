import t from 'tap';
import { MockMemory, PackedDriver, SplitDriver } from '../../lib/testing/index.ts';
import {
  Access,
  Chain,
  createQueue,
  type FaultReason,
  type GuestBuffer,
  Popped,
  type QueueLayout,
} from '../../lib/virtio/index.ts';
import {
  buffer,
  kinds,
  packedRig,
  RING,
  RING_BYTES,
  type Rig,
  segments,
  splitRig,
  take,
} from './harness.ts';

type Checks = Pick<typeof t, 'equal' | 'ok'>;

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

/** The next pop breaks the queue for `reason`, once and for all; what was taken before is unharmed. */
function breaks(
  t: Checks,
  rig: Rig<SplitDriver | PackedDriver>,
  reason: FaultReason,
  detail?: number,
): void {
  t.equal(rig.queue.pop(rig.chain), Popped.Broken, `broken: ${reason}`);
  t.equal(rig.queue.fault?.reason, reason);
  if (detail !== undefined) t.equal(rig.queue.fault?.detail, detail, `${reason}: detail`);
  t.equal(rig.queue.pop(rig.chain), Popped.Broken);
  t.equal(rig.queue.available(), false);
  t.equal(rig.queue.enableKicks(), false);
  t.ok(rig.mock.intact);
}

for (const { name, rig: build } of kinds) {
  /** Descriptors in an indirect table, or in the ring, with flags of the test's choice. */
  const offer = (
    rig: Rig<SplitDriver | PackedDriver>,
    descriptors: { address: number; length: number; flags: number }[],
  ): void => {
    const { driver } = rig;
    if (driver instanceof SplitDriver) {
      for (const [i, d] of descriptors.entries()) {
        const more = i + 1 < descriptors.length;
        driver.writeDescriptor(i, { ...d, flags: d.flags | (more ? NEXT : 0), next: i + 1 });
      }
      driver.offer(0);
    } else {
      const available = driver.availableFlags;
      for (const [i, d] of descriptors.entries()) {
        const more = i + 1 < descriptors.length;
        const flags = d.flags | (more ? NEXT : 0) | available;
        driver.writeDescriptor(driver.nextSlot + i, { ...d, flags, id: 3 });
      }
    }
  };
  const good = (rig: Rig<SplitDriver | PackedDriver>): GuestBuffer => buffer(rig.driver, 16);

  t.test(`${name}: a readable descriptor after a writable one`, async (t) => {
    for (const length of [16, 0]) {
      for (const indirect of [false, true]) {
        const rig = build();
        const b = { ...good(rig), length };
        if (indirect) {
          rig.driver.add([b], [b], { indirect });
          const table = (rig.driver.desc[0]! - rig.region.start) / 4;
          const shift = name === 'split' ? 0 : 16;
          rig.region.u32[table + 3] = rig.region.u32[table + 3]! | (WRITE << shift);
          rig.region.u32[table + 7] = 0;
        } else {
          offer(rig, [
            { ...b, flags: WRITE },
            { ...b, flags: 0 },
          ]);
        }
        breaks(t, rig, 'readable-after-writable');
      }
    }
  });

  t.test(`${name}: addresses from 2^53 on are refused, never rounded`, async (t) => {
    for (const [low, high] of [
      [0, 2 ** 21],
      [1, 2 ** 21],
      [0xffff_ffff, 0xffff_ffff],
      [0x1000, 0x8000_0000],
    ] as const) {
      for (const flags of [0, WRITE, INDIRECT]) {
        const rig = build();
        // Where a rounded or truncated address would lead.
        rig.mock.add(0, 0x2000);
        rig.mock.add(2 ** 53 - 0x1001, 0x1000);
        offer(rig, [{ address: 0x1000, length: 16, flags }]);
        rig.driver.desc[0] = low;
        rig.driver.desc[1] = high;
        breaks(t, rig, 'address-too-large', high * 2 ** 32 + low);
      }
    }
  });

  t.test(`${name}: every byte of a buffer must be mapped`, async (t) => {
    for (const [address, length, detail] of [
      [0x30_0000, 1, 0x30_0000],
      [0x9_ffff, 1, 0x9_ffff],
      [0xa_0fff, 2, 0xa_1000],
      [0xa_0000, 0xffff_ffff, 0xa_1000],
      [2 ** 53 - 1, 1, 2 ** 53 - 1],
      [2 ** 53 - 0x1001, 0xffff_ffff, 2 ** 53 - 1],
      [0, 1, 0],
    ] as const) {
      for (const flags of [0, WRITE]) {
        const rig = build();
        rig.mock.add(0xa_0000, 0x1000);
        rig.mock.add(2 ** 53 - 0x1001, 0x1000);
        offer(rig, [
          { ...good(rig), flags: 0 },
          { address, length, flags },
        ]);
        breaks(t, rig, 'buffer-unmapped', detail);
      }
    }
  });

  t.test(`${name}: header, data and status at the borders of the region they are in`, async (t) => {
    const end = RING + RING_BYTES;
    for (const indirect of [false, true]) {
      for (const place of [0, 1, 2]) {
        for (const [address, length, detail] of [
          [RING - 1, 1, RING - 1],
          [RING - 1, 2, RING - 1],
          [RING - 16, 0xffff_ffff, RING - 16],
          [end - 1, 2, end],
          [end, 1, end],
          [RING, RING_BYTES + 1, end],
          [RING + 2 ** 31, 1, RING + 2 ** 31],
          [RING + 2 ** 32, 1, RING + 2 ** 32],
          [2 ** 32 - 1, 1, 2 ** 32 - 1],
        ] as const) {
          const rig = build({ indirect: true });
          const buffers = [buffer(rig.driver, 16), buffer(rig.driver, 512), buffer(rig.driver, 1)];
          buffers[place] = { address, length };
          rig.driver.add(buffers.slice(0, 1), buffers.slice(1), { indirect });
          breaks(t, rig, 'buffer-unmapped', detail);
        }
        for (const [address, length] of [
          [RING, RING_BYTES],
          [end - 1, 1],
          [RING, 1],
        ] as const) {
          const rig = build({ indirect: true });
          const buffers = [buffer(rig.driver, 16), buffer(rig.driver, 512), buffer(rig.driver, 1)];
          buffers[place] = { address, length };
          rig.driver.add(buffers.slice(0, 1), buffers.slice(1), { indirect });
          take(rig);
          const { readable, writable } = segments(rig.chain);
          t.same(
            [...readable, ...writable],
            buffers.map((b) => [b.address, b.length]),
          );
          t.equal(rig.chain.readableBytes, buffers[0]!.length);
          t.equal(rig.chain.writableBytes, buffers[1]!.length + buffers[2]!.length);
        }
      }
    }
  });

  t.test(`${name}: a region that crosses a multiple of 4 GiB, or is as large`, async (t) => {
    for (const [start, length, inside] of [
      [2 ** 32 - 0x1000, 0x2000, [-0x1000, -1, 0, 0xfff]],
      [2 ** 32, 2 ** 32, [0, 2 ** 31, 2 ** 32 - 1]],
      [2 ** 32 + 0x1000, 2 ** 32, [0x1000, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 0xfff]],
    ] as const) {
      for (const at of inside) {
        for (const near of [false, true]) {
          const rig = build();
          const { u8, u16, u32, ...rest } = rig.mock.create(start, 16);
          rig.mock.memory.add({ ...rest, u8, u16, u32, length });
          const address = 2 ** 32 + at;
          const one = { address, length: 1 };
          // The one before makes its region the one that is looked at first.
          if (near) {
            rig.driver.add([], [one]);
            take(rig);
          }
          rig.driver.add([one], [one, one]);
          take(rig);
          t.same(segments(rig.chain), {
            readable: [[address, 1]],
            writable: [
              [address, 1],
              [address, 1],
            ],
          });
          rig.driver.add([one], [{ address: start - 1, length: 1 }, one]);
          breaks(t, rig, 'buffer-unmapped', start - 1);
        }
      }
    }
  });

  t.test(`${name}: the access of every region is respected`, async (t) => {
    for (const [access, flags, reason] of [
      [Access.Read, WRITE, 'buffer-not-writable'],
      [Access.Write, 0, 'buffer-not-readable'],
    ] as const) {
      const rig = build();
      rig.mock.add(0xa_0000, 0x1000);
      rig.mock.add(0xa_1000, 0x1000, access);
      offer(rig, [{ address: 0xa_0ff0, length: 0x11, flags }]);
      breaks(t, rig, reason, 0xa_1000);
    }
  });

  t.test(`${name}: INDIRECT that was not negotiated`, async (t) => {
    const rig = build({ indirect: false });
    rig.driver.add([good(rig)], [], { indirect: true });
    breaks(t, rig, 'indirect-not-negotiated');
  });

  t.test(`${name}: INDIRECT together with NEXT`, async (t) => {
    const rig = build();
    offer(rig, [
      { address: rig.driver.allocate(64), length: 64, flags: INDIRECT },
      { ...good(rig), flags: 0 },
    ]);
    breaks(t, rig, 'indirect-with-next');
  });

  t.test(`${name}: tables of impossible length`, async (t) => {
    for (const length of [0, 1, 15, 17, 0x10_0010, 0xffff_fff0, 0xffff_ffff]) {
      const rig = build();
      offer(rig, [{ address: rig.driver.allocate(64), length, flags: INDIRECT }]);
      breaks(t, rig, 'indirect-length', length);
    }
  });

  t.test(`${name}: tables that are not mapped, not wholly, or not readable`, async (t) => {
    for (const [address, detail] of [
      [0x30_0000, 0x30_0000],
      [0xa_0ff8, 0xa_1000],
      [0xa_0ff1, 0xa_1000],
      [0xb_0000, 0xb_0000],
      [0xc_0ffc, 0xc_1000],
    ] as const) {
      const rig = build();
      rig.mock.add(0xa_0000, 0x1000);
      rig.mock.add(0xb_0000, 0x1000, Access.Write);
      rig.mock.add(0xc_0000, 0x1000);
      rig.mock.add(0xc_1000, 0x1000, Access.Write);
      offer(rig, [{ address, length: 32, flags: INDIRECT }]);
      breaks(t, rig, 'indirect-unmapped', detail);
    }
  });

  t.test(`${name}: a record that has grown takes no longer chains`, async (t) => {
    const rig = build();
    for (let i = 0; i < 2000; i++) rig.mock.memory.add(rig.mock.create(0x10_0000 + i, 1));
    rig.driver.add([{ address: 0x10_0000, length: 2000 }], []);
    take(rig);
    t.equal(rig.chain.count, 2000);
    rig.queue.complete(rig.chain.head, 0);
    const table = rig.mock.add(0x40_0000, 0x1_0000);
    const inTable = Array.from({ length: 1025 }, (_, i) => i + 1);
    for (const next of inTable) {
      const flags = next < 1025 ? NEXT : 0;
      const last = name.startsWith('packed') ? 0 : flags | (next << 16);
      table.u32.set([0x40_0000, 0, 16, last], (next - 1) * 4);
    }
    offer(rig, [{ address: 0x40_0000, length: 1025 * 16, flags: INDIRECT }]);
    breaks(t, rig, 'chain-too-long', 1024);
  });

  t.test(`${name}: thousands of one-byte regions bound the segments of a chain`, async (t) => {
    const rig = build();
    for (let i = 0; i < 5000; i++) rig.mock.memory.add(rig.mock.create(0x10_0000 + i, 1));
    rig.driver.add([{ address: 0x10_0000, length: 4096 }], []);
    take(rig);
    t.equal(rig.chain.count, 4096);
    rig.driver.add([{ address: 0x10_0000, length: 4097 }], []);
    breaks(t, rig, 'chain-too-long', 4096);
  });

  t.test(`${name}: a resolver that throws, or answers with other memory`, async (t) => {
    const trouble = new Error('EIO');
    for (const [flags, reason] of [
      [0, 'buffer-unmapped'],
      [INDIRECT, 'indirect-unmapped'],
    ] as const) {
      for (const resolve of [
        (): never => {
          throw trouble;
        },
        () => new MockMemory().create(0x30_1000, 16),
      ]) {
        const mock = new MockMemory(resolve);
        const region = mock.add(0x1_0000, 0x1000);
        const driver =
          name === 'split'
            ? new SplitDriver(region, { size: 8, indirect: true })
            : new PackedDriver(region, { size: 8, indirect: true });
        const queue = createQueue(mock.memory, driver.layout);
        const rig = { mock, region, driver, queue, chain: new Chain() };
        offer(rig, [{ address: 0x30_0000, length: 16, flags }]);
        breaks(t, rig, reason, 0x30_0000);
        t.ok(queue.fault?.cause instanceof Error);
        t.equal(mock.memory.regions.length, 1, 'nothing wrong is remembered');
      }
    }
  });

  t.test(`${name}: memory that vanishes is a fault, not a crash`, async (t) => {
    // An indirect table, read in place, and one over a border.
    for (const address of [0x10_0000, 0x10_0ff8]) {
      const rig = build();
      const tables = rig.mock.add(0x10_0000, 0x1000);
      rig.mock.add(0x10_1000, 0x1000);
      offer(rig, [{ address, length: 32, flags: INDIRECT }]);
      rig.mock.vanish(tables);
      breaks(t, rig, 'memory-vanished');
    }

    const idle = build();
    idle.mock.vanish(idle.region);
    t.equal(idle.queue.available(), false);
    t.equal(idle.queue.enableKicks(), false);
    idle.queue.disableKicks();
    breaks(t, idle, 'memory-vanished');

    const batch = build();
    const b = good(batch);
    for (let i = 0; i < 3; i++) batch.driver.add([b], []);
    take(batch);
    batch.mock.vanish(batch.region);
    batch.queue.complete(batch.chain.head, 0);
    t.equal(batch.queue.publish(), false);
    breaks(t, batch, 'memory-vanished');

    const between = build();
    for (let i = 0; i < 3; i++) between.driver.add([b], []);
    take(between);
    between.mock.vanish(between.region);
    breaks(t, between, 'memory-vanished');
  });

  t.test(`${name}: the chain that broke the queue is where it stands still`, async (t) => {
    const rig = build();
    const b = good(rig);
    rig.driver.add([b], []);
    rig.driver.add([{ address: 0x30_0000, length: 1 }], []);
    rig.driver.add([b], []);
    const id = take(rig);
    const { avail } = rig.queue.position;
    breaks(t, rig, 'buffer-unmapped');
    t.equal(rig.queue.position.avail, avail);
    rig.queue.complete(id, 0);
    t.equal(rig.queue.publish(), true);
    t.same(rig.driver.poll(), [{ id, length: 0 }], 'what came before is answered');
  });
}

t.test('split: heads and links outside the table', async (t) => {
  for (const head of [8, 9, 0xffff]) {
    const rig = splitRig();
    rig.driver.offer(head);
    breaks(t, rig, 'head-out-of-range');
    t.equal(rig.queue.fault?.head, head);
  }
  for (const next of [8, 0xffff]) {
    const rig = splitRig();
    rig.driver.writeDescriptor(2, { ...buffer(rig.driver, 16), flags: NEXT, next });
    rig.driver.offer(2);
    breaks(t, rig, 'next-out-of-range', next);
    t.equal(rig.queue.fault?.head, 2);
  }
  for (const next of [2, 8, 0xffff]) {
    const rig = splitRig();
    const b = buffer(rig.driver, 16);
    rig.driver.add([b, b], [], { indirect: true });
    const table = (rig.driver.desc[0]! - rig.region.start) / 4;
    rig.region.u32[table + 3] = NEXT | (next << 16);
    breaks(t, rig, 'next-out-of-range', next);
  }
});

t.test('virtio 1.3 §2.7.5.2: loops end', async (t) => {
  for (const length of [16, 0]) {
    const own = splitRig();
    const b = { ...buffer(own.driver, 16), length };
    own.driver.writeDescriptor(0, { ...b, flags: NEXT, next: 0 });
    own.driver.offer(0);
    breaks(t, own, 'chain-too-long');

    const wide = splitRig({ size: 1024 });
    for (let i = 0; i < 1024; i++) {
      wide.driver.writeDescriptor(i, { ...b, flags: NEXT, next: (i + 1) % 1024 });
    }
    wide.driver.offer(5);
    breaks(t, wide, 'chain-too-long');

    const table = splitRig();
    table.driver.add([b, b], [], { indirect: true });
    const at = (table.driver.desc[0]! - table.region.start) / 4;
    table.region.u32[at + 7] = NEXT;
    breaks(t, table, 'chain-too-long');
  }
});

t.test('virtio 1.3 §2.7.5.3.1: no indirect table in an indirect table', async (t) => {
  const rig = splitRig();
  const b = buffer(rig.driver, 16);
  rig.driver.add([b, b], [], { indirect: true });
  const at = (rig.driver.desc[0]! - rig.region.start) / 4;
  rig.region.u32[at + 7] = INDIRECT;
  breaks(t, rig, 'indirect-in-indirect', 1);
});

t.test('split: an avail index that runs ahead or back', async (t) => {
  for (const index of [9, 0x7fff, 0xffff]) {
    const rig = splitRig();
    rig.driver.avail[1] = index;
    breaks(t, rig, 'avail-index-jump', index);
  }
  const rig = splitRig({ position: { avail: 65530, used: 65530 } });
  rig.driver.avail[1] = 3;
  breaks(t, rig, 'avail-index-jump', 3);
});

t.test('split: a head offered twice', async (t) => {
  const rig = splitRig();
  const b = buffer(rig.driver, 16);
  const head = rig.driver.add([b], []);
  rig.driver.offer(head);
  t.equal(take(rig), head);
  breaks(t, rig, 'head-in-flight');
  t.equal(rig.queue.fault?.head, head);
  rig.queue.complete(head, 0);
  rig.queue.publish();
  t.equal(rig.driver.poll().length, 1);
});

t.test('packed: buffer ids outside the queue, and in flight already', async (t) => {
  for (const id of [8, 0xffff]) {
    const rig = packedRig();
    const b = buffer(rig.driver, 16);
    rig.driver.writeDescriptor(0, { ...b, id, flags: rig.driver.availableFlags });
    breaks(t, rig, 'head-out-of-range');
    t.equal(rig.queue.fault?.head, id);
  }
  const rig = packedRig();
  const b = buffer(rig.driver, 16);
  const id = rig.driver.add([b], []);
  take(rig);
  rig.driver.writeDescriptor(1, { ...b, id, flags: rig.driver.availableFlags });
  breaks(t, rig, 'head-in-flight');
});

t.test('virtio 1.3 §2.8.17: a list longer than what is left of the ring', async (t) => {
  const rig = packedRig();
  const b = buffer(rig.driver, 16);
  rig.driver.add([b, b], []);
  const id = take(rig);
  const available = rig.driver.availableFlags;
  for (let i = 2; i < 10; i++) {
    rig.driver.writeDescriptor(i % 8, { ...b, id: 5, flags: NEXT | available });
  }
  breaks(t, rig, 'chain-too-long', 6);
  rig.queue.complete(id, 0);
});

t.test('packed: a full ring that says there is more', async (t) => {
  const rig = packedRig({ size: 4 });
  const b = buffer(rig.driver, 16);
  rig.driver.add([b, b], [b, b]);
  const id = take(rig);
  t.equal(rig.queue.pop(rig.chain), Popped.None);
  rig.driver.writeDescriptor(0, { ...b, id: 3, flags: rig.driver.availableFlags });
  breaks(t, rig, 'avail-index-jump');
  rig.queue.complete(id, 0);
  t.equal(rig.queue.publish(), true);
});

t.test(
  'virtio 1.3 §2.8.5: a list of direct descriptors that ends in an indirect one',
  async (t) => {
    const rig = packedRig();
    const b = buffer(rig.driver, 16);
    const available = rig.driver.availableFlags;
    rig.driver.writeDescriptor(0, { ...b, id: 1, flags: NEXT | available });
    rig.driver.writeDescriptor(1, { ...b, id: 1, flags: INDIRECT | available });
    breaks(t, rig, 'indirect-with-next');
  },
);

for (const { name, rig: build } of kinds) {
  const parts: [keyof QueueLayout & ('desc' | 'driver' | 'device'), number, number][] =
    name === 'split'
      ? [
          ['desc', 128, 16],
          ['driver', 22, 2],
          ['device', 70, 4],
        ]
      : [
          ['desc', 128, 16],
          ['driver', 4, 4],
          ['device', 4, 4],
        ];

  t.test(`${name}: the whole ring must be mapped, to its last byte, in one region`, async (t) => {
    for (const [part, length, alignment] of parts) {
      const { mock, driver } = build();
      const place = (address: number): QueueLayout => ({ ...driver.layout, [part]: address });
      const refused = (address: number, reason: FaultReason, message: string): void => {
        const layout = place(address);
        t.throws(
          () => createQueue(mock.memory, layout),
          { name: 'VirtqueueError', code: 'ERR_VDUSE_RING', reason },
          `${part}: ${message}`,
        );
      };
      refused(0x30_0000, 'ring-unmapped', 'no memory there');
      mock.add(0x10_0000, length);
      t.ok(createQueue(mock.memory, place(0x10_0000)), `${part}: exactly as long as its region`);
      mock.add(0x20_0000, length - 1);
      refused(0x20_0000, 'ring-unmapped', 'one byte too long');
      mock.add(0x20_0000 + length - 1, 0x1000);
      refused(0x20_0000, 'ring-unmapped', 'over a border');
      mock.add(0x40_0000, 0x1000);
      for (let shift = 1; shift < alignment; shift++) {
        refused(0x40_0000 + shift, 'ring-layout', `misaligned by ${shift}`);
      }
      mock.add(0x50_0001, 0x1000);
      refused(0x50_0010, 'ring-layout', 'a region that begins at an odd address');
      for (const address of [-16, 2 ** 53, Number.NaN, 16.5]) {
        refused(address, 'ring-layout', `address ${address}`);
      }
      t.ok(mock.intact);
    }
  });

  t.test(`${name}: the ring's regions must allow what the device does there`, async (t) => {
    for (const [part, access] of [
      ['desc', name === 'split' ? Access.Read : Access.ReadWrite],
      ['driver', Access.Read],
      ['device', Access.Write],
    ] as const) {
      for (const given of [Access.Read, Access.Write, Access.ReadWrite]) {
        const { mock, driver } = build();
        mock.add(0x10_0000, 0x1000, given);
        const layout = { ...driver.layout, [part]: 0x10_0000 };
        if ((given & access) === access) {
          t.ok(createQueue(mock.memory, layout), `${part} with access ${given}`);
        } else {
          t.throws(
            () => createQueue(mock.memory, layout),
            { code: 'ERR_VDUSE_RING', reason: 'ring-unmapped' },
            `${part} with access ${given}`,
          );
        }
      }
    }
  });

  t.test(`${name}: impossible sizes and positions`, async (t) => {
    const { mock, driver } = build();
    const refused = (change: Partial<QueueLayout>): void => {
      t.throws(
        () => createQueue(mock.memory, { ...driver.layout, ...change }),
        { code: 'ERR_VDUSE_RING', reason: 'ring-layout' },
        JSON.stringify(change),
      );
    };
    for (const size of [0, -8, 1.5, 32769, 65536, Number.NaN]) refused({ size });
    if (name === 'split') refused({ size: 6 });
    for (const bad of [-1, 65536, 0.5, Number.NaN]) {
      refused({ position: { avail: bad, used: 0 } });
      refused({ position: { avail: 0, used: bad } });
    }
    if (name === 'packed') refused({ position: { avail: 8, used: 0x8000 } });
  });

  t.test(`${name}: a resolver that throws while the ring is looked up`, async (t) => {
    const trouble = new Error('EIO');
    const mock = new MockMemory(() => {
      throw trouble;
    });
    const { driver } = build();
    t.throws(() => createQueue(mock.memory, driver.layout), {
      code: 'ERR_VDUSE_RING',
      reason: 'ring-unmapped',
      cause: trouble,
    });
  });
}
