import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, ftruncateSync, openSync, readFileSync } from 'node:fs';
import t from 'tap';
import { native } from '../../lib/native/index.ts';
import { ADDON, collectUntil, inWorker, openFds } from './helpers.ts';

const PAGE = native.pageSize();

/** The addresses this process has mapped, as /proc says. */
function mapped(address: number): boolean {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .some((line) => {
      const [start, end] = line
        .split(' ')[0]!
        .split('-')
        .map((hex) => Number.parseInt(hex, 16));
      return start! <= address && address < end!;
    });
}

function memfdMapping(pages: number) {
  const file = native.memfd('test', pages * PAGE);
  const mapping = native.mmap(file.fd, pages * PAGE, 0, true);
  return { file, mapping, bytes: new Uint8Array(mapping.buffer) };
}

t.test('eventfd: counts, never waits', async (t) => {
  const event = native.eventfd(3);
  t.equal(native.eventfdRead(event.fd), 3);
  t.equal(native.eventfdRead(event.fd), 0, 'would block');
  native.eventfdSignal(event.fd);
  native.eventfdSignal(event.fd);
  t.equal(native.eventfdRead(event.fd), 2);
  native.setNonblocking(event.fd, false);
  t.equal(native.eventfdRead(event.fd), 0, 'would block, though a peer made it blocking');
  native.setNonblocking(event.fd, true);
  const full = native.eventfd(0xffffffff);
  t.equal(native.eventfdRead(full.fd), 0xffffffff);
  event.close();
  full.close();
  t.equal(event.fd, -1);
  event.close();
  t.throws(() => native.eventfdSignal(closedNumber()), { code: 'EBADF', syscall: 'write' });
  t.throws(() => native.eventfdRead(closedNumber()), { code: 'EBADF', syscall: 'read' });
});

/** A descriptor number that was open a moment ago. */
function closedNumber(): number {
  const owned = native.eventfd(0);
  const { fd } = owned;
  owned.close();
  return fd;
}

t.test('owned descriptors: duplicate, adopt, release, close at collection', async (t) => {
  const before = openFds();
  const event = native.eventfd(0);
  const copy = native.duplicate(event.fd);
  native.eventfdSignal(copy.fd);
  t.equal(native.eventfdRead(event.fd), 1);
  const adopted = native.adopt(copy.release());
  t.equal(copy.fd, -1);
  t.equal(copy.release(), -1);
  copy.close();
  native.eventfdSignal(adopted.fd);
  adopted.close();
  event.close();
  t.throws(() => native.adopt(closedNumber()), { code: 'EBADF', syscall: 'fcntl F_GETFD' });
  t.throws(() => Object.assign(event, { fd: 0 }), TypeError, 'fd is read-only');
  const other = native.eventfd(0);
  closeSync(other.fd);
  t.throws(() => other.close(), { code: 'EBADF', syscall: 'close' });
  t.equal(openFds(), before);
  for (let i = 0; i < 50; i++) native.eventfd(0);
  t.ok(await collectUntil(() => openFds() === before), 'forgotten ones are closed');
});

t.test('mappings: shared, detached by unmap', async (t) => {
  const { file, mapping, bytes } = memfdMapping(4);
  t.equal(mapping.buffer, mapping.buffer);
  t.equal(mapping.length, 4 * PAGE);
  const second = native.mmap(file.fd, 100, PAGE, false);
  bytes[PAGE + 7] = 42;
  t.equal(new Uint8Array(second.buffer)[7], 42);
  t.equal(second.buffer.byteLength, 100, 'no multiple of a page');
  const { address } = mapping;
  t.ok(mapped(address));
  mapping.unmap();
  t.notOk(mapped(address));
  t.equal(mapping.address, 0);
  t.equal(mapping.buffer.byteLength, 0);
  t.equal(bytes.length, 0);
  t.equal(bytes[0], undefined);
  t.throws(() => Atomics.load(bytes, 0));
  mapping.unmap();
  second.unmap();
  const anonymous = native.allocate(100);
  t.strictSame([...new Uint8Array(anonymous.buffer)], new Array(100).fill(0));
  t.equal(anonymous.address % PAGE, 0);
  anonymous.unmap();
  t.throws(() => native.mmap(file.fd, PAGE, 1, true), RangeError);
  t.throws(() => native.mmap(file.fd, 0, 0, true), RangeError);
  t.throws(() => native.mmap(file.fd, 2 ** 32 + 1, 0, true), RangeError);
  t.throws(() => native.allocate(2 ** 32 + 1), RangeError);
  t.throws(() => native.mmap(closedNumber(), PAGE, 0, true), { code: 'EBADF', syscall: 'mmap' });
  file.close();
  const sparse = native.memfd('sparse', 2 ** 32);
  const largest = native.mmap(sparse.fd, 2 ** 32, 0, true);
  t.equal(largest.buffer.byteLength, 2 ** 32);
  largest.unmap();
  sparse.close();
});

t.test('mappings live as long as their buffer or themselves', async (t) => {
  let bytes: Uint8Array | undefined = memfdMapping(1).bytes;
  const address = (() => {
    const { mapping } = memfdMapping(1);
    bytes = new Uint8Array(mapping.buffer);
    return mapping.address;
  })();
  bytes[5] = 9;
  t.notOk(await collectUntil(() => !mapped(address), 5), 'the buffer keeps it');
  t.equal(bytes[5], 9);
  bytes = undefined;
  t.ok(await collectUntil(() => !mapped(address)), 'collected');
});

t.test('a buffer moved by transfer() keeps its memory', async (t) => {
  const { mapping } = memfdMapping(1);
  const buffer = mapping.buffer as ArrayBuffer & { transfer?: () => ArrayBuffer };
  if (buffer.transfer === undefined) return;
  const { address } = mapping;
  const moved = new Uint8Array(buffer.transfer());
  mapping.unmap();
  moved[0] = 1;
  t.equal(moved[0], 1);
  t.ok(mapped(address));
});

t.test('SIGBUS: a file cut short reads as zeroes', async (t) => {
  const counter = new Uint32Array(native.sigbusCounter());
  t.equal(native.sigbusCounter(), native.sigbusCounter());
  const start = Atomics.load(counter, 0);
  const { file, mapping, bytes } = memfdMapping(3);
  const bystander = memfdMapping(1);
  bystander.bytes[0] = 7;
  bytes.fill(0xaa);
  t.equal(mapping.poisoned, false);
  ftruncateSync(file.fd, PAGE);
  t.equal(bytes[0], 0xaa, 'still backed');
  t.equal(bytes[2 * PAGE], 0);
  t.equal(mapping.poisoned, true);
  t.equal(Atomics.load(counter, 0), start + 1);
  t.equal(bytes[0], 0, 'the whole mapping');
  bytes[2 * PAGE] = 5;
  t.equal(bytes[2 * PAGE], 5, 'and it can be written');
  t.equal(bystander.mapping.poisoned, false);
  t.equal(bystander.bytes[0], 7);
  mapping.unmap();
  t.equal(mapping.poisoned, true);
  const again = native.mmap(file.fd, PAGE, 0, true);
  t.equal(again.poisoned, false, 'a slot used again is clean');
  t.equal(new Uint8Array(again.buffer)[0], 0xaa);
});

t.test('SIGBUS: through more mappings than one block of slots', async (t) => {
  const all = Array.from({ length: 600 }, () => memfdMapping(1));
  const last = all.at(-1)!;
  ftruncateSync(last.file.fd, 0);
  t.equal(last.bytes[0], 0);
  t.strictSame(
    all.map(({ mapping }) => mapping.poisoned),
    all.map((one) => one === last),
  );
  for (const { mapping, file } of all) {
    mapping.unmap();
    file.close();
  }
});

t.test('SIGBUS: in a worker', async (t) => {
  const file = native.memfd('worker', PAGE);
  const { worker, message } = inWorker(
    `
    const fs = require('node:fs');
    const { fd, page } = workerData;
    const mapping = native.mmap(fd, page, 0, true);
    const bytes = new Uint8Array(mapping.buffer);
    bytes[0] = 1;
    fs.ftruncateSync(fd, 0);
    const seen = bytes[0];
    parentPort.postMessage({ seen, poisoned: mapping.poisoned, count: new Uint32Array(native.sigbusCounter())[0] });
    `,
    { fd: file.fd, page: PAGE },
  );
  const exited = once(worker, 'exit');
  const before = new Uint32Array(native.sigbusCounter())[0]!;
  t.strictSame(await message, { seen: 0, poisoned: true, count: before + 1 });
  await exited;
  t.equal(new Uint32Array(native.sigbusCounter())[0], before + 1, 'one counter for the process');
});

t.test('SIGBUS: the kernel is refused, not killed', async (t) => {
  const { file, mapping } = memfdMapping(1);
  ftruncateSync(file.fd, 0);
  const source = openSync('/dev/zero', 'r');
  const rows = native.allocate(64);
  const vectors = native.allocate(16);
  new Int32Array(rows.buffer).set([0, source, 0, 0, 0, 0, 0, 1]);
  new BigUint64Array(vectors.buffer).set([BigInt(mapping.address), 16n]);
  native.ioRun(rows.buffer, vectors.buffer, 0, 1);
  t.equal(new Int32Array(rows.buffer)[9], -14, 'EFAULT');
  t.equal(mapping.poisoned, false);
  closeSync(source);
});

t.test('SIGBUS elsewhere kills, as without the addon', async (t) => {
  const script = `
    const native = require(${JSON.stringify(ADDON)});
    const file = native.memfd('x', 4096);
    native.mmap(file.fd, 4096, 0, true);
    process.kill(process.pid, 'SIGBUS');
    setTimeout(() => {}, 10000);
  `;
  t.equal(spawnSync(process.execPath, ['-e', script]).signal, 'SIGBUS');
});

t.test('an addon whose worker has gone stays loaded for its signal handler', async (t) => {
  const script = `
    const { Worker } = require('node:worker_threads');
    const worker = new Worker('const n = require(process.env.ADDON); n.mmap(n.memfd("x", 1).fd, 1, 0, true)', { eval: true });
    worker.on('exit', () => process.kill(process.pid, 'SIGBUS'));
    setTimeout(() => {}, 10000);
  `;
  const done = spawnSync(process.execPath, ['-e', script], { env: { ...process.env, ADDON } });
  t.equal(done.signal, 'SIGBUS', 'not SIGSEGV');
});

t.test('secrets: protected memory, kernel randomness, the keyring', async (t) => {
  const secret = native.allocate(PAGE);
  native.protectSecret(secret);
  const flags = readFileSync('/proc/self/smaps', 'utf8')
    .split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
    .find((part) => part.startsWith(`${secret.address.toString(16).padStart(8, '0')}-`));
  t.match(flags, /VmFlags:.* dd/, 'left out of core dumps');
  secret.unmap();
  t.throws(() => native.protectSecret(secret), TypeError);

  const random = new Uint8Array(4096);
  native.getRandom(random);
  t.ok(new Set(random).size > 200);
  native.getRandom(random.subarray(0, 0));

  const payload = Uint8Array.from([1, 2, 3, 0, 255]);
  let serial: number;
  try {
    serial = native.addUserKey('vduse-test', payload);
  } catch (error) {
    const { code } = error as { code: string };
    if (code !== 'ENOSYS' && code !== 'EPERM') throw error;
    t.comment(`the kernel's keyring can't be used here: ${code}`);
    return;
  }
  t.strictSame([...native.readKey(serial)], [...payload]);
  t.equal(native.addUserKey('vduse-test', payload.subarray(0, 2)), serial, 'updated');
  t.strictSame([...native.readKey(serial)], [1, 2]);
  t.throws(() => native.addUserKey('vduse-test', new Uint8Array(0)), {
    code: 'EINVAL',
    syscall: 'add_key',
  });
  t.throws(() => native.readKey(0x7ffffff0), { code: 'ENOKEY', syscall: 'keyctl KEYCTL_READ' });
});
