import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, constants, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  type FileMap,
  IoFlag,
  type IoKind,
  IoTable,
  IoKind as Kind,
  native,
  ROW,
  ROW_WORDS,
  RWF_NOWAIT,
} from '../../lib/native/index.ts';
import { temporaryFolder } from '../store/harness.ts';
import { memoryOf } from './helpers.ts';

const PAGE = 4096;
const [EBADF, EAGAIN, EFAULT, EINVAL] = [9, 11, 14, 22];
/** No file is open under it: what is done all the same is done without a system call. */
const NO_FILE = 999_999;

function words({ address }: FileMap) {
  return { low: address | 0, high: Math.floor(address / 2 ** 32) };
}

/** A file of `content`, its mapping, and an empty table. */
function fresh(t: Test, content: Uint8Array) {
  const path = join(temporaryFolder(t, '/var/tmp'), 'file');
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT);
  writeSync(fd, content);
  const map = native.mapFile(fd, content.length, true);
  const table = new IoTable(native);
  t.teardown(() => {
    map.unmap();
    closeSync(fd);
    table.close();
  });
  return { path, fd, map, table };
}

interface Move {
  readonly kind: IoKind;
  readonly fd: number;
  readonly offset: number;
  readonly memory: { u8: Uint8Array; address: number };
  /** Pairs: offset in memory, length. */
  readonly pieces: readonly (readonly [number, number])[];
}

function run(table: IoTable, map: FileMap, move: Move, flags = 0): number {
  const length = move.pieces.reduce((sum, [, bytes]) => sum + bytes, 0);
  table.clear();
  const row = table.push(0, 0, move.kind, move.fd, { offset: move.offset, length }, 0, 0);
  for (const [at, bytes] of move.pieces) table.addVector(move.memory, at, bytes);
  table.mapNewest(words(map), flags);
  native.ioRun(table.rowBuffer, table.vectorBuffer, row, 1);
  return table.rows[row * ROW_WORDS + ROW.result]!;
}

t.test('a row with a map is copied: no system call is made', async (t) => {
  const content = randomBytes(4 * PAGE);
  const { path, map, table } = fresh(t, content);
  const memory = memoryOf(native.allocate(4 * PAGE));
  const move = { kind: Kind.Read, fd: NO_FILE, offset: 1000, memory };
  const read = run(table, map, {
    ...move,
    pieces: [
      [0, 5000],
      [6000, 0],
      [6000, 7],
    ],
  });
  t.equal(read, 5007);
  t.ok(content.subarray(1000, 6000).equals(memory.u8.subarray(0, 5000)));
  t.ok(content.subarray(6000, 6007).equals(memory.u8.subarray(6000, 6007)));
  memory.u8.fill(7);
  const write = { kind: Kind.Write, fd: NO_FILE, offset: PAGE - 1, memory };
  t.equal(
    run(table, map, {
      ...write,
      pieces: [
        [0, 3],
        [100, PAGE],
      ],
    }),
    PAGE + 3,
  );
  content.fill(7, PAGE - 1, 2 * PAGE + 2);
  t.ok(content.equals(readFileSync(path)));
});

t.test('a write that is aligned and whole is copied in another way, and right', async (t) => {
  const content = randomBytes(4 * PAGE);
  const { path, map, table } = fresh(t, content);
  const memory = memoryOf(native.allocate(4 * PAGE));
  const source = randomBytes(2 * PAGE);
  memory.u8.set(source, 1);
  const write = { kind: Kind.Write, fd: NO_FILE, memory };
  const places = [
    [PAGE, PAGE],
    [512, 512],
    [2 * PAGE + 16, 64],
    [3 * PAGE + 8, 64],
    [3 * PAGE + 512, 100],
  ] as const;
  for (const [offset, length] of places) {
    t.equal(run(table, map, { ...write, offset, pieces: [[1, length]] }), length);
    source.copy(content, offset, 0, length);
    t.ok(content.equals(readFileSync(path)), `${length} bytes at ${offset}`);
  }
});

t.test('what a page cannot give is the system call that would have been made', async (t) => {
  const { path, fd, map, table } = fresh(t, new Uint8Array(4 * PAGE).fill(1));
  const memory = memoryOf(native.allocate(4 * PAGE));
  ftruncateSync(fd, PAGE);
  const all = [[0, 4 * PAGE]] as const;
  const move = { fd, offset: 0, memory, pieces: all };
  t.equal(run(table, map, { ...move, kind: Kind.Read }), PAGE, 'a short read');
  const gone = { ...move, kind: Kind.Read, offset: 2 * PAGE, pieces: [[0, 2 * PAGE]] as const };
  t.equal(run(table, map, gone), 0);
  t.equal(run(table, map, { ...gone, fd: NO_FILE }), -EBADF);
  t.equal(run(table, map, { ...move, kind: Kind.Write }), 4 * PAGE, 'a write makes it long again');
  t.equal(readFileSync(path).length, 4 * PAGE);
});

t.test('guest memory that goes away during a copy fails it, and is not poisoned', async (t) => {
  const { fd, map, table } = fresh(t, new Uint8Array(2 * PAGE).fill(1));
  const memfd = native.memfd('guest', 2 * PAGE);
  const mapping = native.mmap(memfd.fd, 2 * PAGE, 0, true);
  ftruncateSync(memfd.fd, PAGE);
  const memory = memoryOf(mapping);
  const lost = { fd, offset: 0, memory, pieces: [[PAGE, 10]] as const };
  t.equal(run(table, map, { ...lost, kind: Kind.Read }), -EFAULT);
  t.equal(run(table, map, { ...lost, kind: Kind.Write }), -EFAULT);
  t.equal(mapping.poisoned, false);
  const there = { fd, offset: 0, memory, pieces: [[0, 10]] as const };
  t.equal(run(table, map, { ...there, kind: Kind.Read }), 10);
  // Any other access is absorbed as ever.
  t.equal(memory.u8[PAGE], 0);
  t.equal(mapping.poisoned, true);
  mapping.unmap();
  memfd.close();
});

t.test('a read-only mapping takes reads; too long a row is refused', async (t) => {
  const { fd, table } = fresh(t, new Uint8Array(PAGE).fill(3));
  const map = native.mapFile(fd, PAGE, false);
  const memory = memoryOf(native.allocate(PAGE));
  const move = { kind: Kind.Read, fd: NO_FILE, offset: 0, memory };
  t.equal(run(table, map, { ...move, pieces: [[0, PAGE]] }), PAGE);
  t.equal(memory.u8[PAGE - 1], 3);
  t.equal(run(table, map, { ...move, pieces: [[0, 2 ** 31]] }), -EINVAL);
  map.unmap();
  t.equal(map.address, 0);
  map.unmap();
});

t.test('only copies that wait for a page are slow, and only watched ones count', async (t) => {
  const { map, table } = fresh(t, new Uint8Array(PAGE).fill(3));
  const memory = memoryOf(native.allocate(PAGE));
  const before = native.slowCopies();
  const move = { kind: Kind.Read, fd: NO_FILE, offset: 0, memory, pieces: [[0, PAGE]] } as const;
  t.equal(run(table, map, move, IoFlag.Watch), PAGE);
  t.equal(native.slowCopies(), before, 'its page was in memory');
});

t.test('a copy whose page was dropped is as slow as the disk, and right', async (t) => {
  const content = randomBytes(PAGE);
  const { path, fd, map, table } = fresh(t, content);
  const memory = memoryOf(native.allocate(PAGE));
  const move = { kind: Kind.Read, fd, offset: 0, memory, pieces: [[0, PAGE]] } as const;
  const drop = ['if=/dev/null', `of=${path}`, 'count=0', 'conv=notrunc,fdatasync', 'oflag=nocache'];
  t.equal(spawnSync('dd', drop).status, 0);
  // Whether it could be dropped depends on the file system.
  table.clear();
  table.push(0, 0, Kind.Read, fd, { offset: 0, length: PAGE }, 0, 0);
  table.addVector(memory, 0, PAGE);
  table.rows[ROW.rwFlags] = RWF_NOWAIT;
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, 1);
  const dropped = table.rows[ROW.result] === -EAGAIN;
  const before = native.slowCopies();
  t.equal(run(table, map, move), PAGE);
  t.equal(native.slowCopies(), before, 'not watched');
  t.equal(spawnSync('dd', drop).status, 0);
  const again = native.mapFile(fd, PAGE, false);
  t.equal(run(table, again, { ...move, fd: NO_FILE }, IoFlag.Watch), PAGE);
  t.ok(content.equals(memory.u8));
  // The other mapping holds the page now, so that it could not be dropped again.
  t.equal(native.slowCopies(), before, 'it was there');
  again.unmap();
  map.unmap();
  t.equal(spawnSync('dd', drop).status, 0);
  const last = native.mapFile(fd, PAGE, false);
  t.equal(run(table, last, move, IoFlag.Watch), PAGE);
  t.equal(native.slowCopies(), before + (dropped ? 1 : 0), 'it had to be read');
  last.unmap();
});

t.test('a file system that cannot map says so', async (t) => {
  const pipe = native.eventfd(0);
  t.throws(() => native.mapFile(pipe.fd, PAGE, false), { code: 'ENODEV', syscall: 'mmap' });
  pipe.close();
});
