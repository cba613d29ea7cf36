import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  statfsSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  type IoKind,
  IoTable,
  IoKind as Kind,
  native,
  ROW,
  ROW_BYTES,
  ROW_WORDS,
  RWF_NOWAIT,
} from '../../lib/native/index.ts';
import { fillEventfd, memoryOf, openFds } from './helpers.ts';
import { TestRing } from './test-ring.ts';

const [EINTR, EBADF, EAGAIN, EINVAL, ETIME, EISDIR, EOPNOTSUPP] = [4, 9, 11, 22, 62, 21, 95];
const MIB = 1 << 20;

const folder = t.testdir({ file: '' });
const path = join(folder, 'file');

function open(flags = constants.O_RDWR): number {
  return openSync(path, flags | constants.O_CREAT);
}

/** Pushes one row whose vectors are `pieces` (offset, length) of `memory`. */
function push(
  table: IoTable,
  kind: IoKind,
  fd: number,
  offset: number,
  memory?: { u8: Uint8Array; address: number },
  ...pieces: [number, number][]
): number {
  const length = pieces.reduce((sum, [, bytes]) => sum + bytes, 0);
  const row = table.push(0, 0, kind, fd, { offset, length }, 0, 0);
  for (const [at, bytes] of pieces) table.addVector(memory!, at, bytes);
  return row;
}

function results(table: IoTable): number[] {
  return Array.from({ length: table.count }, (_, i) => table.rows[i * ROW_WORDS + ROW.result]!);
}

t.test('ioRun: every kind, in order', async (t) => {
  const fd = open();
  const memory = native.allocate(4 * MIB);
  const view = memoryOf(memory);
  const table = new IoTable(native);
  const pattern = randomBytes(100_000);
  view.u8.set(pattern);
  push(table, Kind.Write, fd, 0, view, [0, 60_000]);
  push(table, Kind.Write, fd, 60_000, view, [60_000, 1], [60_001, 0], [60_001, 39_999]);
  push(table, Kind.Sync, fd, 0);
  push(table, Kind.Read, fd, 0, view, [MIB, 100_000]);
  push(table, Kind.Read, fd, 10, view, [2 * MIB, 5], [3 * MIB, 6], [2 * MIB + 5, 7]);
  push(table, Kind.Read, fd, 99_990, view, [MIB + 100_000, 4], [MIB + 100_004, 1000]);
  push(table, Kind.Read, fd, 200_000, view, [0, 10]);
  push(table, Kind.Read, fd, 0);
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, table.count);
  t.strictSame(results(table), [60_000, 40_000, 0, 100_000, 18, 10, 0, 0]);
  t.ok(pattern.equals(readFileSync(path)));
  t.ok(pattern.equals(view.u8.subarray(MIB, MIB + 100_000)));
  t.ok(pattern.subarray(10, 15).equals(view.u8.subarray(2 * MIB, 2 * MIB + 5)));
  t.ok(pattern.subarray(15, 21).equals(view.u8.subarray(3 * MIB, 3 * MIB + 6)));
  t.ok(pattern.subarray(21, 28).equals(view.u8.subarray(2 * MIB + 5, 2 * MIB + 12)));
  t.ok(pattern.subarray(99_990).equals(view.u8.subarray(MIB + 100_000, MIB + 100_010)));

  table.clear();
  table.push(
    0,
    0,
    Kind.Allocate,
    fd,
    { offset: 4096, length: 8192 },
    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    0,
  );
  push(table, Kind.Read, fd, 4096, view, [0, 8192]);
  push(table, Kind.Read, fd, 0, view, [0, 4096]);
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, 2);
  t.strictSame(results(table), [0, 8192, 0], 'only the rows asked for');
  t.ok(view.u8.subarray(0, 8192).every((byte) => byte === 0));
  native.ioRun(table.rowBuffer, table.vectorBuffer, 2, 1);
  t.equal(results(table)[2], 4096);
  closeSync(fd);
  memory.unmap();
  table.close();
});

t.test('ioRun: RWF_NOWAIT returns what is there', async (t) => {
  const fd = open();
  ftruncateSync(fd, 8192);
  const memory = native.allocate(8192);
  const table = new IoTable(native);
  push(table, Kind.Read, fd, 0, memoryOf(memory), [0, 8192]);
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, 1);
  t.equal(results(table)[0], 8192, 'now in the page cache');
  table.rows[ROW.rwFlags] = RWF_NOWAIT;
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, 1);
  const [result] = results(table);
  // tmpfs has no RWF_NOWAIT.
  t.ok([8192, -EOPNOTSUPP, -EAGAIN].includes(result!), `${result}`);
  t.comment(`on a file system of type 0x${statfsSync(folder).type.toString(16)}: ${result}`);
  table.rows[ROW.rwFlags] = 0x40000000;
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, 1);
  t.equal(results(table)[0], -EOPNOTSUPP, 'an unknown flag');
  closeSync(fd);
});

t.test('ioRun: errors are the row’s own', async (t) => {
  const fd = open();
  const readOnly = open(constants.O_RDONLY);
  const directory = openSync(folder, 'r');
  const view = memoryOf(native.allocate(4096));
  const table = new IoTable(native);
  push(table, Kind.Read, -1, 0, view, [0, 16]);
  push(table, Kind.Write, readOnly, 0, view, [0, 16]);
  push(table, Kind.Read, directory, 0, view, [0, 16]);
  push(table, Kind.Sync, -1, 0);
  table.push(0, 0, Kind.Allocate, fd, { offset: 0, length: 0 }, 0, 0);
  push(table, Kind.Read, fd, 0, { u8: view.u8, address: 16 }, [0, 16]);
  push(table, Kind.Write, fd, 0, view, [0, 16]);
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, table.count);
  t.strictSame(results(table), [-EBADF, -EBADF, -EISDIR, -EBADF, -EINVAL, -14, 16]);
  for (const one of [fd, readOnly, directory]) closeSync(one);
});

t.test('ioRun: a row that points outside the table is refused', async (t) => {
  const fd = open();
  const view = memoryOf(native.allocate(4096));
  const table = new IoTable(native, 8, 2048);
  for (let i = 0; i < 6; i++) push(table, Kind.Write, fd, 0, view, [0, 1]);
  const pieces = Array.from({ length: 1025 }, () => [0, 1] as [number, number]);
  push(table, Kind.Write, fd, 0, view, ...pieces);
  push(table, Kind.Write, fd, 0, view, ...pieces.slice(1));
  const set = (row: number, field: number, value: number) => {
    table.rows[row * ROW_WORDS + field] = value;
  };
  set(0, ROW.kind, 4);
  set(1, ROW.firstVector, 4096);
  set(2, ROW.vectorCount, -1);
  set(3, ROW.firstVector, -1);
  set(4, ROW.firstVector, 4095);
  set(4, ROW.vectorCount, 2);
  new Uint32Array(table.vectorBuffer)[5 * 4 + 3] = 1;
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, table.count);
  t.strictSame(results(table), [...new Array(7).fill(-EINVAL), 1024]);

  const { rowBuffer, vectorBuffer } = table;
  const capacity = rowBuffer.byteLength / ROW_BYTES;
  native.ioRun(rowBuffer, vectorBuffer, capacity, 0);
  t.throws(() => native.ioRun(rowBuffer, vectorBuffer, capacity, 1), RangeError);
  t.throws(() => native.ioRun(rowBuffer, vectorBuffer, 0, capacity + 1), RangeError);
  t.throws(() => native.ioRun(rowBuffer, vectorBuffer, -1, 1), RangeError);
  table.close();
  t.throws(() => native.ioRun(rowBuffer, vectorBuffer, 0, 1), RangeError, 'detached');
  closeSync(fd);
});

t.test('IoPool: rows are copied, completions announced', async (t) => {
  const before = openFds();
  const pool = native.ioPool(3);
  const fd = open();
  const memory = native.allocate(MIB);
  const view = memoryOf(memory);
  const table = new IoTable(native);
  const pattern = randomBytes(64 * 1024);
  view.u8.set(pattern);
  for (let i = 0; i < 64; i++) {
    const row = push(table, Kind.Write, fd, i * 1024, view, [i * 1024, 500], [i * 1024 + 500, 524]);
    table.rows[row * ROW_WORDS + ROW.user] = i - 1;
  }
  const bad = push(table, Kind.Write, fd, 0, view, [0, 1]);
  table.rows[bad * ROW_WORDS + ROW.firstVector] = 9999;
  table.rows[bad * ROW_WORDS + ROW.user] = 64;
  const many = push(
    table,
    Kind.Write,
    fd,
    100_000,
    view,
    ...Array.from({ length: 40 }, (_, i) => [i, 1] as [number, number]),
  );
  table.rows[many * ROW_WORDS + ROW.user] = 65;
  pool.submit(table.rowBuffer, table.vectorBuffer, 0, table.count);
  new Uint8Array(table.rowBuffer).fill(0xff);
  new Uint8Array(table.vectorBuffer).fill(0xff);

  const pairs = new Int32Array(2 * 10);
  const polled = new Int32Array([pool.eventFd, 0]);
  const seen = new Map<number, number>();
  while (seen.size < 66) {
    t.equal(native.signalAndPoll(polled, 1, 5_000_000, pairs, 0), 1);
    const count = pool.reap(pairs);
    for (let i = 0; i < count; i++) seen.set(pairs[i * 2]!, pairs[i * 2 + 1]!);
  }
  t.equal(pool.reap(pairs), 0);
  t.equal(native.signalAndPoll(polled, 1, 0, pairs, 0), 0, 'the eventfd is clear');
  t.equal(seen.get(64), -EINVAL);
  t.equal(seen.get(65), 40);
  for (let i = 0; i < 64; i++) t.equal(seen.get(i - 1), 1024);
  t.ok(pattern.equals(readFileSync(path).subarray(0, pattern.length)));

  t.throws(
    () => pool.submit(table.rowBuffer, table.vectorBuffer, 0, table.rows.length),
    RangeError,
  );
  t.throws(() => pool.reap(new Int32Array(1)), RangeError);
  pool.close();
  pool.close();
  t.equal(pool.eventFd, -1);
  t.equal(pool.reap(pairs), 0);
  t.throws(() => pool.submit(table.rowBuffer, table.vectorBuffer, 0, 1), /closed/);
  closeSync(fd);
  t.equal(openFds(), before);
});

t.test('io_uring: a ring driven from JavaScript', async (t) => {
  const before = openFds();
  let ring: TestRing;
  try {
    ring = new TestRing(8);
  } catch (error) {
    t.comment(`io_uring can't be used here: ${error}`);
    return;
  }
  t.ok(native.ioUringProbe(ring.fd).includes(TestRing.READV));

  ring.push(TestRing.NOP, -1, 0, 0, 0, 77);
  t.equal(ring.enter(1, 1, -1), 1);
  t.strictSame(ring.reap(), [[77, 0]]);

  const fd = open();
  ftruncateSync(fd, 0);
  const memory = native.allocate(8192);
  const view = memoryOf(memory);
  const pattern = randomBytes(4096);
  view.u8.set(pattern);
  const table = new IoTable(native);
  push(table, Kind.Write, fd, 0, view, [0, 4096]);
  native.ioRun(table.rowBuffer, table.vectorBuffer, 0, 1);
  table.clear();
  push(table, Kind.Read, fd, 0, view, [4096, 96], [4192, 4000]);
  ring.push(TestRing.READV, fd, 0, table.vectorAddress, 2, 5);
  t.equal(ring.enter(1, 1, 1_000_000), 1);
  t.strictSame(ring.reap(), [[5, 4096]]);
  t.ok(pattern.equals(view.u8.subarray(4096)));

  const event = native.eventfd(0);
  const signals = new Int32Array([event.fd, -1, 99, fd, 3, 99, 0x7fffffff, -1, 99]);
  ring.push(TestRing.POLL_ADD, event.fd, 0, 0, 1, 6);
  t.equal(ring.enter(1, 1, 1_000_000, signals), 1);
  t.strictSame(ring.reap(), [[6, 1]], 'the signal is sent first');
  t.strictSame([signals[2], signals[5], signals[8]], [0, 25, EBADF], 'sent, ENOTTY, EBADF');
  t.equal(native.eventfdRead(event.fd), 1);

  const start = process.hrtime.bigint();
  t.equal(ring.enter(0, 1, 20_000), -ETIME);
  t.ok(process.hrtime.bigint() - start >= 20_000_000n);
  t.equal(ring.enter(0, 0, 20_000), 0);
  t.equal(ring.enter(0, 0, -1, undefined, fd), -EOPNOTSUPP, 'no ring');
  t.throws(() => native.ioUringSetup(0, 0), { code: 'EINVAL', syscall: 'io_uring_setup' });
  t.throws(() => native.ioUringProbe(fd), { code: 'EOPNOTSUPP' });
  ring.close();
  event.close();
  closeSync(fd);
  t.equal(openFds(), before);
});

t.test('signalAndPoll', async (t) => {
  const [one, two] = [native.eventfd(0), native.eventfd(0)];
  const fds = new Int32Array([one.fd, 0, two.fd, 0, -1, 7]);
  const signals = new Int32Array([two.fd, -1, 0]);
  t.equal(native.signalAndPoll(fds, 3, 0, signals, 0), 0);
  t.strictSame([...fds], [one.fd, 0, two.fd, 0, -1, 0]);
  t.equal(native.signalAndPoll(fds, 3, -1, signals, 1), 1);
  t.strictSame([...fds], [one.fd, 0, two.fd, 1, -1, 0], 'POLLIN');
  native.eventfdRead(two.fd);
  const start = process.hrtime.bigint();
  t.equal(native.signalAndPoll(fds, 2, 15_000, signals, 0), 0);
  t.ok(process.hrtime.bigint() - start >= 15_000_000n);
  const shared = new Int32Array(new SharedArrayBuffer(8));
  shared[0] = 0x7ffffff0;
  t.equal(native.signalAndPoll(shared, 1, -1, signals, 0), 1);
  t.equal(shared[1], 0x20, 'POLLNVAL');
  t.throws(() => native.signalAndPoll(fds, 4, 0, signals, 0), RangeError);
  t.throws(() => native.signalAndPoll(fds, 1, -2, signals, 0), RangeError);
  t.throws(() => native.signalAndPoll(fds, 1, Number.NaN, signals, 0), RangeError);
  one.close();
  two.close();
});

t.test('files: allocate, lock, describe', async (t) => {
  const fd = open();
  ftruncateSync(fd, 0);
  native.fallocate(fd, 0, 0, MIB);
  t.equal(fstatSync(fd).size, MIB);
  t.throws(() => native.fallocate(fd, 0, 0, 0), { code: 'EINVAL', syscall: 'fallocate' });

  const other = open();
  const copy = native.duplicate(fd);
  t.equal(native.lockFile(fd, true), true);
  t.equal(native.lockFile(copy.fd, true), true, 'the same open file');
  t.equal(native.lockFile(other, true), false);
  t.equal(native.lockFile(other, false), false);
  t.equal(native.lockFile(fd, false), true, 'now shared');
  t.equal(native.lockFile(other, false), true);
  t.equal(native.lockFile(fd, true), false);
  closeSync(other);
  t.equal(native.lockFile(fd, true), true);
  const readOnly = open(constants.O_RDONLY);
  t.throws(() => native.lockFile(readOnly, true), { code: 'EBADF', syscall: 'fcntl F_OFD_SETLK' });

  t.throws(() => native.blockDeviceInfo(fd), { code: 'ENOTTY', syscall: 'ioctl BLKGETSIZE64' });
  const alignment = native.directIoAlignment(fd);
  t.ok(alignment === undefined || (alignment.length === 2 && alignment.every(Number.isInteger)));
  t.comment(`direct I/O alignment here: ${alignment}`);
  t.throws(() => native.directIoAlignment(0x7ffffff0), { code: 'EBADF', syscall: 'statx' });
  for (const one of [fd, readOnly]) closeSync(one);
  copy.close();
});

t.test('sendSignals: an eventfd that a peer made blocking and filled is given up', async (t) => {
  const full = native.eventfd(0);
  const other = native.eventfd(0);
  t.teardown(() => {
    full.close();
    other.close();
  });
  fillEventfd(full.fd);
  const signals = Int32Array.of(full.fd, -1, 0, other.fd, -1, 0);
  native.sendSignals(signals, 2);
  t.same([signals[2], signals[5]], [EINTR, 0], 'the others are sent');
  t.equal(native.eventfdRead(other.fd), 1);
  t.throws(() => native.eventfdSignal(full.fd), { code: 'EINTR', syscall: 'write' });
  native.setNonblocking(full.fd, true);
  native.sendSignals(signals, 1);
  t.equal(signals[2], 0, 'full is readable, which is all a signal is for');
});
