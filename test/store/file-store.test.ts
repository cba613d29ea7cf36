import { fstatSync, ftruncateSync, readFileSync, readSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  IoFlag,
  IoKind,
  type Memory,
} from '../../lib/native/io-table.ts';
import {
  Copy,
  type CopyPolicy,
  FileStore,
  type Image,
  ImageError,
  openImage,
  type Store,
} from '../../lib/store/index.ts';
import {
  attachLoop,
  FOLDERS,
  guestMemory,
  Results,
  type RowScript,
  TestPort,
  temporaryFolder,
} from './harness.ts';

const MIB = 1 << 20;
const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
const [EINTR, EIO, ENOSPC, ENOSYS, EOPNOTSUPP] = [-4, -5, -28, -38, -95];

interface Rig {
  readonly image: Image;
  readonly port: TestPort;
  readonly results: Results;
  readonly store: FileStore;
}

interface RigOptions {
  readonly direct?: boolean;
  readonly size?: number;
  readonly mmap?: boolean;
  readonly policy?: CopyPolicy;
}

function open(t: Test, path: string, options: RigOptions = {}): Rig {
  const { direct = false, size, mmap = false, policy } = options;
  const image = openImage(path, {
    readOnly: false,
    direct,
    blockSize: 512,
    mmap,
    ...(size === undefined ? {} : { size }),
  });
  const port = new TestPort();
  const results = new Results();
  const store = new FileStore(port, image.target, results, policy);
  t.teardown(() => {
    store.close();
    image.close();
  });
  return { image, port, results, store };
}

function fresh(t: Test, parent: string, options: RigOptions = {}): Rig {
  const path = join(temporaryFolder(t, parent), 'disk.img');
  return open(t, path, { size: MIB, ...options });
}

interface Piece {
  readonly memory: Memory;
  readonly offset: number;
  readonly length: number;
}

function transfer(store: Store, kind: 'read' | 'write', at: number, pieces: Piece[], token = 0) {
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  store[kind](token, { offset: at, length });
  for (const piece of pieces) store.addMemory(piece.memory, piece.offset, piece.length);
}

/** Cut `length` bytes into pieces (at most 1024: IOV_MAX) at alignments that `salt` chooses. */
function pieces(memory: Memory, length: number, salt: readonly number[]): Piece[] {
  const list: Piece[] = [];
  let at = 0;
  for (let done = 0, i = 0; done < length; i++) {
    const bytes = Math.min(length - done, 13 + (salt[i % salt.length]! % 3000));
    at += salt[(i + 1) % salt.length]! % 7;
    list.push({ memory, offset: at, length: bytes });
    at += bytes;
    done += bytes;
  }
  return list;
}

function put(list: Piece[], bytes: Uint8Array): void {
  let done = 0;
  for (const { memory, offset, length } of list) {
    memory.u8.set(bytes.subarray(done, done + length), offset);
    done += length;
  }
}

function got(list: Piece[]): Buffer {
  return Buffer.concat(
    list.map(({ memory, offset, length }) => memory.u8.subarray(offset, offset + length)),
  );
}

const SECTORS = 64;
const operations = fc.array(
  fc
    .record({
      kind: fc.constantFrom('read', 'write', 'write', 'discard', 'zero', 'unmap', 'flush'),
      sector: fc.integer({ min: 0, max: SECTORS - 1 }),
      sectors: fc.integer({ min: 1, max: 24 }),
      fill: fc.integer({ min: 1, max: 255 }),
      salt: fc.array(fc.nat(), { minLength: 2, maxLength: 5 }),
    })
    .map((o) => ({ ...o, sectors: Math.min(o.sectors, SECTORS - o.sector) })),
  { minLength: 1, maxLength: 30 },
);

/** Any sequence of operations leaves what a plain array of bytes would hold. */
function behavesLikeMemory(t: Test, rig: Rig): void {
  const { store, port, results } = rig;
  const memory = guestMemory(64 * 1024);
  const model = new Uint8Array(SECTORS * 512);
  const wipe = [{ memory, offset: 0, length: model.length }];
  fc.assert(
    fc.property(operations, (list) => {
      model.fill(0);
      put(wipe, model);
      transfer(store, 'write', 0, wipe);
      port.run();
      results.take();
      for (const { kind, sector, sectors, fill, salt } of list) {
        const at = sector * 512;
        const length = sectors * 512;
        const parts = pieces(memory, length, salt);
        if (kind === 'write') {
          const bytes = Uint8Array.from({ length }, (_, i) => fill + i);
          put(parts, bytes);
          transfer(store, 'write', at, parts);
          model.set(bytes, at);
        } else if (kind === 'read') {
          transfer(store, 'read', at, parts);
        } else if (kind === 'discard') {
          store.discard(0, at, length);
        } else if (kind === 'flush') {
          store.flush(0);
        } else {
          store.writeZeroes(0, at, length, kind === 'unmap');
          model.fill(0, at, at + length);
        }
        port.run();
        const moves = kind === 'read' || kind === 'write';
        const [result, ...more] = results.take();
        if (more.length !== 0 || result![1] !== (moves ? length : 0)) return false;
        if (kind === 'read' && !got(parts).equals(model.subarray(at, at + length))) return false;
        if (kind === 'discard') {
          // Unspecified now: take what is there, which must stay.
          readSync(rig.image.fd.fd, memory.u8, 0, length, at);
          model.set(memory.u8.subarray(0, length), at);
        }
      }
      transfer(store, 'read', 0, wipe);
      port.run();
      results.take();
      return got(wipe).equals(model);
    }),
    { numRuns: 100 },
  );
  t.pass('100 histories');
}

for (const parent of FOLDERS) {
  t.test(`${parent}: behaves like memory, buffered`, async (t) => {
    const rig = fresh(t, parent);
    behavesLikeMemory(t, rig);
    const blocking = rig.port.rows.filter((row) => row.flags === IoFlag.MayBlock);
    t.notOk(blocking.some((row) => row.kind === IoKind.Read));
    t.ok(
      rig.port.rows.every((row) => row.kind < IoKind.Sync || row.flags === IoFlag.MayBlock),
      'whatever may wait for the disk says so',
    );
  });

  t.test(`${parent}: behaves like memory, copied from and to a mapping`, async (t) => {
    let asked = 0;
    const rig = fresh(t, parent, {
      mmap: true,
      policy: {
        canCopy: () => (++asked % 3 === 0 ? Copy.Later : Copy.Yes),
        learn: () => {},
        forget: () => {},
        writtenBack: () => {},
      },
    });
    behavesLikeMemory(t, rig);
    const mapped = (kind: IoKind) => rig.port.rows.filter((row) => row.mapped && row.kind === kind);
    t.ok(mapped(IoKind.Read).length > 100);
    t.ok(mapped(IoKind.Write).length > 100);
  });

  t.test(`${parent}: what was read by a call is copied the next time`, async (t) => {
    const { store, port, results } = fresh(t, parent, { mmap: true });
    const memory = guestMemory(3 * 4096);
    const whole = [{ memory, offset: 0, length: 3 * 4096 }];
    const page = [{ memory, offset: 0, length: 512 }];
    const read = (at: number, list: Piece[]) => {
      transfer(store, 'read', at, list);
      port.run();
      t.ok(results.take()[0]![1] > 0);
      return port.rows.at(-1)!.mapped;
    };
    t.equal(read(4096, whole), false);
    t.equal(read(4096, whole), true);
    t.equal(read(8192 + 512, page), true, 'a part of it');
    t.equal(read(0, whole), false, 'a page more than was read');
    t.equal(read(65536, page), false);
    t.equal(read(65536, page), false, 'a part of a page says nothing of the rest');
    store.discard(0, 8192, 4096);
    port.run();
    results.take();
    t.equal(read(4096, whole), false, 'what was given back');
  });

  t.test(`${parent}: what is written again and again is copied until a flush`, async (t) => {
    const { store, port, results, image } = fresh(t, parent, { mmap: true });
    // A tmpfs has no disk to write to: what is known to be in memory stays as it is.
    const { writtenBack } = image.target.copies!;
    const memory = guestMemory(4096);
    const write = () => {
      transfer(store, 'write', 4096, [{ memory, offset: 0, length: 4096 }]);
      port.run();
      t.equal(results.take()[0]![1], 4096);
      return port.rows.at(-1)!.mapped;
    };
    const untilCopied = () => {
      let count = 0;
      while (!write() && count < 5000) count++;
      return count;
    };
    const first = untilCopied();
    if (writtenBack) t.ok(first > 100 && first < 5000, `${first} writes`);
    else t.equal(first, 1);
    t.equal(write(), true);
    store.flush(0);
    port.run();
    results.take();
    t.equal(untilCopied(), writtenBack ? first : 0);
  });

  t.test(`${parent}: a file that is cut short fails copies as it fails calls`, async (t) => {
    const answers = [true, false].map((mmap) => {
      const { store, port, results, image } = fresh(t, parent, { mmap });
      const memory = guestMemory(8192);
      const at = (offset: number) => [{ memory, offset: 0, length: offset }];
      transfer(store, 'read', 65536, at(8192));
      port.run();
      ftruncateSync(image.fd.fd, 65536 + 4096);
      transfer(store, 'read', 65536, at(8192));
      port.run();
      transfer(store, 'read', 65536 + 4096, at(4096));
      port.run();
      t.equal(port.rows.at(-2)!.mapped, mmap);
      return results.take();
    });
    t.same(answers[0], answers[1]);
    t.same(answers[0], [
      [0, 8192],
      [0, 4096],
      [0, 0],
    ]);
  });

  t.test(`${parent}: behaves like memory, direct, memory at any alignment`, async (t) => {
    try {
      const rig = fresh(t, parent, { direct: true });
      behavesLikeMemory(t, rig);
      t.ok(rig.port.rows.every((row) => row.flags === IoFlag.MayBlock));
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      t.match(error.code, /^ERR_VDUSE_IMAGE_(DIRECT|BLOCK_SIZE)$/, error.message);
    }
  });

  t.test(`${parent}: discard and unmapping give space back, plain zeroes need not`, async (t) => {
    const { store, port, results, image } = fresh(t, parent, { size: 4 * MIB });
    const memory = guestMemory(MIB);
    memory.u8.fill(1);
    const used = () => fstatSync(image.fd.fd).blocks * 512;
    const fill = () => {
      for (let at = 0; at < 4 * MIB; at += MIB) {
        transfer(store, 'write', at, [{ memory, offset: 0, length: MIB }]);
      }
      store.flush(1);
      port.run();
      results.take();
    };
    fill();
    t.equal(used(), 4 * MIB);
    store.discard(0, MIB, 2 * MIB);
    port.run();
    t.equal(used(), 2 * MIB);
    fill();
    store.writeZeroes(0, 0, 3 * MIB, true);
    port.run();
    t.equal(used(), MIB);
    store.writeZeroes(0, 3 * MIB, MIB, false);
    port.run();
    t.equal(used(), MIB, 'zeroed in place');
    t.strictSame(results.take(), [
      [0, 0],
      [0, 0],
    ]);
    t.ok(readFileSync(image.info.name).every((byte) => byte === 0));
    t.equal(statSync(image.info.name).size, 4 * MIB);
  });

  t.test(`${parent}: a file cut short under us reads and writes to what is there`, async (t) => {
    const { store, port, results, image } = fresh(t, parent);
    const memory = guestMemory(8192);
    ftruncateSync(image.fd.fd, 1000);
    transfer(store, 'read', 512, [{ memory, offset: 0, length: 4096 }], 7);
    transfer(store, 'read', 65536, [{ memory, offset: 0, length: 4096 }], 8);
    port.run();
    t.strictSame(results.take(), [
      [7, 488],
      [8, 0],
    ]);
  });
}

t.test('many operations in one turn keep their tokens and places', async (t) => {
  const { store, port, results } = fresh(t, FOLDERS[0]!);
  const memory = guestMemory(1024 * 512);
  for (let i = 0; i < 1024; i++) {
    memory.u8.fill(i % 250, i * 512, (i + 1) * 512);
    transfer(store, 'write', i * 512, [{ memory, offset: i * 512, length: 512 }], i);
  }
  t.equal(port.turn(), 1024);
  t.equal(results.take().length, 1024);
  const into = guestMemory(512 * 1024);
  transfer(store, 'read', 0, [{ memory: into, offset: 0, length: 512 * 1024 }], 3);
  port.run();
  t.strictSame(results.take(), [[3, 512 * 1024]]);
  t.ok(Buffer.from(into.u8).equals(memory.u8));
});

/** A store whose allocations fail with `errno` for the modes given; everything else is done. */
function lacking(t: Test, errno: number, modes: number[], more?: RowScript): Rig {
  const rig = fresh(t, FOLDERS[0]!, { size: 40 * MIB });
  rig.port.script = (row) =>
    row.kind === IoKind.Allocate && modes.includes(row.mode) ? errno : more?.(row);
  return rig;
}

function asked(rig: Rig): string[] {
  const rows = rig.port.rows.splice(0);
  return rows.map((row) =>
    row.kind === IoKind.Allocate
      ? row.mode === PUNCH
        ? 'punch'
        : 'zero'
      : `${row.kind === IoKind.Write ? 'write' : row.kind === IoKind.Sync ? 'sync' : 'read'} ${row.offset / MIB}+${row.length / MIB}`,
  );
}

t.test('a file system without a fallocate mode: asked once, then the next way', async (t) => {
  for (const errno of [EOPNOTSUPP, ENOSYS]) {
    const rig = lacking(t, errno, [PUNCH, ZERO]);
    const { store, port, results } = rig;
    const memory = guestMemory(MIB);
    memory.u8.fill(1);
    for (let at = 0; at < 40 * MIB; at += MIB) {
      transfer(store, 'write', at, [{ memory, offset: 0, length: MIB }]);
    }
    port.run();
    results.take();
    rig.port.rows.length = 0;

    store.discard(9, 0, 8 * MIB);
    port.run();
    t.strictSame(results.take(), [[9, 0]], 'a discard is a hint');
    t.strictSame(asked(rig), ['punch']);
    store.discard(9, 0, 8 * MIB);
    t.strictSame(results.take(), [[9, 0]], 'at once, now that it is known');

    store.writeZeroes(5, MIB, 35 * MIB, true);
    port.run();
    t.strictSame(results.take(), [[5, 0]]);
    t.strictSame(asked(rig), ['zero', 'write 1+16', 'write 17+16', 'write 33+3']);
    store.writeZeroes(5, 512, 1024, false);
    port.run();
    t.strictSame(results.take(), [[5, 0]]);
    t.equal(asked(rig).length, 1, 'no allocation any more');
    const bytes = readFileSync(rig.image.info.name);
    t.ok(bytes.subarray(0, 512).every((byte) => byte === 1));
    t.ok(bytes.subarray(512, 1536).every((byte) => byte === 0));
    t.ok(bytes.subarray(MIB, 36 * MIB).every((byte) => byte === 0));
    t.ok(bytes.subarray(36 * MIB).every((byte) => byte === 1));
  }

  const rig = lacking(t, EOPNOTSUPP, [PUNCH]);
  rig.store.writeZeroes(0, 0, MIB, true);
  rig.port.run();
  t.strictSame(asked(rig), ['punch', 'zero'], 'zeroes that may unmap need not');
  t.strictSame(rig.results.take(), [[0, 0]]);
});

t.test('errors of allocations and fills are reported, not papered over', async (t) => {
  const failing = lacking(t, ENOSPC, [PUNCH, ZERO]);
  failing.store.discard(0, 0, MIB);
  failing.store.writeZeroes(1, 0, MIB, true);
  failing.store.writeZeroes(2, 0, MIB, false);
  failing.port.run();
  t.strictSame(failing.results.take(), [
    [0, ENOSPC],
    [1, ENOSPC],
    [2, ENOSPC],
  ]);

  let writes = 0;
  const second =
    (result: number): RowScript =>
    (row) =>
      row.kind === IoKind.Write && ++writes % 2 === 0 ? result : undefined;
  for (const [given, reported] of [
    [ENOSPC, ENOSPC],
    [4096, EIO],
    [0, EIO],
  ] as const) {
    const rig = lacking(t, EOPNOTSUPP, [ZERO], second(given));
    rig.store.writeZeroes(0, 0, 40 * MIB, false);
    rig.port.run();
    t.strictSame(rig.results.take(), [[0, reported]]);
    t.strictSame(asked(rig), ['zero', 'write 0+16', 'write 16+16'], 'it stops there');
  }
});

t.test('tmpfs has no ZERO_RANGE: zeroes are written', { skip: !FOLDERS[1] }, async (t) => {
  const rig = fresh(t, FOLDERS[1]!);
  rig.store.writeZeroes(0, 0, 65536, false);
  rig.store.writeZeroes(1, 65536, 512, false);
  rig.port.run();
  t.same(rig.results.take(), [
    [0, 0],
    [1, 0],
  ]);
  t.match(asked(rig), ['zero', 'zero', /write/, /write/]);
});

t.test('a sync that failed fails every later flush of the image, on any queue', async (t) => {
  const { store, port, results, image } = fresh(t, FOLDERS[0]!);
  const others = new Results();
  const other = new FileStore(port, image.target, others);
  port.script = () => EINTR;
  store.flush(1);
  port.run();
  port.script = undefined;
  store.flush(2);
  port.run();
  t.strictSame(
    results.take(),
    [
      [1, EINTR],
      [2, 0],
    ],
    'one that did not happen may be repeated',
  );

  port.script = () => EIO;
  other.flush(3);
  store.flush(4);
  port.turn();
  port.script = undefined;
  t.strictSame(others.take(), [[3, EIO]]);
  t.strictSame(results.take(), [[4, EIO]]);
  port.rows.length = 0;
  store.flush(5);
  other.flush(6);
  port.run();
  t.strictSame(
    [...results.take(), ...others.take()],
    [
      [5, EIO],
      [6, EIO],
    ],
  );
  t.equal(port.rows.length, 0);
  other.close();
  t.equal(port.owners, 1);
});

function openDirect(t: Test): Rig | undefined {
  for (const parent of FOLDERS) {
    try {
      return fresh(t, parent, { direct: true, size: 8 * MIB });
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
    }
  }
  return undefined;
}

t.test('O_DIRECT: aligned memory is used in place, other memory through few slots', async (t) => {
  const rig = openDirect(t);
  if (rig === undefined) return;
  const { store, port, results } = rig;
  const memory = guestMemory(4 * MIB);
  for (let i = 0; i < memory.u8.length; i++) memory.u8[i] = i % 253;
  transfer(store, 'write', 0, [
    { memory, offset: 4096, length: 4096 },
    { memory, offset: 16384, length: 8192 },
  ]);
  port.run();
  t.match(port.rows.splice(0), [{ kind: IoKind.Write, length: 12288, vectors: 2 }]);
  t.strictSame(results.take(), [[0, 12288]]);

  const half = { memory, offset: 4096, length: 256 };
  transfer(store, 'read', 0, [half, { ...half, offset: 8192 }]);
  port.run();
  t.match(port.rows.splice(0), [{ length: 512, vectors: 1 }], 'pieces of half a block');
  t.strictSame(results.take(), [[0, 512]]);

  transfer(store, 'write', 0, [{ memory, offset: 3, length: MIB }], 5);
  port.run();
  t.equal(port.rows.splice(0).length, 8, 'one large operation goes through its slot in turns');
  t.strictSame(results.take(), [[5, MIB]]);

  const from = guestMemory(2 * MIB);
  for (let i = 0; i < 100; i++) {
    transfer(store, 'read', i * 4096, [{ memory: from, offset: i * 4097 + 1, length: 4096 }], i);
  }
  t.equal(port.turn(), 16, 'the others wait for a slot');
  port.run();
  t.strictSame(
    results.take().sort(([a], [b]) => a - b),
    Array.from({ length: 100 }, (_, i) => [i, 4096]),
  );
  for (let i = 0; i < 100; i++) {
    const read = from.u8.subarray(i * 4097 + 1, i * 4097 + 4097);
    if (!Buffer.from(read).equals(memory.u8.subarray(3 + i * 4096, 3 + (i + 1) * 4096))) {
      t.fail(`operation ${i}`);
    }
  }
});

t.test(
  'O_DIRECT: a bounced operation that fails or is short ends with what it moved',
  async (t) => {
    const rig = openDirect(t);
    if (rig === undefined) return;
    const { store, port, results } = rig;
    const memory = guestMemory(MIB);
    memory.u8.fill(9);
    transfer(store, 'write', 0, [{ memory, offset: 1, length: 262144 }]);
    port.run();
    results.take();
    for (const [given, reported] of [
      [EIO, EIO],
      [0, 131072],
      [1000, 132072],
    ] as const) {
      let rows = 0;
      port.script = () => (++rows === 2 ? given : undefined);
      memory.u8.fill(0);
      transfer(store, 'read', 0, [{ memory, offset: 1, length: 262144 }], 4);
      port.run();
      t.strictSame(results.take(), [[4, reported]]);
      t.equal(rows, 2);
      t.ok(memory.u8.subarray(1, 131073).every((byte) => byte === 9));
      t.equal(memory.u8[0], 0);
    }
    port.script = undefined;
    transfer(store, 'read', 0, [{ memory, offset: 1, length: 262144 }], 4);
    port.run();
    t.strictSame(results.take(), [[4, 262144]], 'its slot is free again');
  },
);

t.test('a block device: zeroes, discards, and ranges that are no whole blocks', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const file = join(folder, 'backing.img');
  writeFileSync(file, new Uint8Array(MIB).fill(1));
  const device = attachLoop(t, file, '--sector-size', '4096');
  if (device === undefined) {
    t.comment('no loop devices here: run in the test machine');
    return;
  }
  const rig = open(t, device);
  const { store, port, results } = rig;
  const memory = guestMemory(MIB);
  const bytes = () => {
    transfer(store, 'read', 0, [{ memory, offset: 0, length: MIB }], 9);
    port.run();
    t.strictSame(results.take(), [[9, MIB]]);
    return memory.u8;
  };
  store.writeZeroes(0, 0, 65536, true);
  store.writeZeroes(1, 65536, 65536, false);
  store.writeZeroes(2, 131072, 512, true);
  store.discard(3, 262144, 65536);
  store.discard(4, 512, 512);
  store.flush(5);
  port.run();
  t.strictSame(
    results.take().sort(([a], [b]) => a - b),
    [0, 1, 2, 3, 4, 5].map((token) => [token, 0]),
  );
  t.ok(
    bytes()
      .subarray(0, 131584)
      .every((byte) => byte === 0),
  );
  t.ok(
    bytes()
      .subarray(131584, 262144)
      .every((byte) => byte === 1),
  );
  t.ok(port.rows.every((row) => row.flags === IoFlag.MayBlock));
});
