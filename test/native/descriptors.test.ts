import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { native } from '../../lib/native/index.ts';
import { ADDON, collectUntil, inWorker, openFds } from './helpers.ts';

/** Runs CommonJS `code` in a process of its own; its status, or 'hangs' after `limit` ms. */
async function childStatus(code: string, limit = 10_000): Promise<unknown> {
  const prelude = `const native = require(${JSON.stringify(ADDON)});`;
  const child = spawn(process.execPath, ['-e', prelude + code], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), limit);
  const [status, signal] = await once(child, 'exit');
  clearTimeout(timer);
  return signal === 'SIGKILL' ? 'hangs' : (status ?? signal);
}

t.test('watch: one event a rearm', async (t) => {
  const event = native.eventfd(1);
  let calls = 0;
  let wake = () => {};
  const watcher = native.watch(event.fd, () => {
    calls++;
    wake();
  });
  await sleep(20);
  t.equal(calls, 0, 'none before the first rearm');
  let next = new Promise<void>((resolve) => (wake = resolve));
  watcher.rearm();
  await next;
  await sleep(20);
  t.equal(calls, 1, 'still readable, not reported again');
  next = new Promise<void>((resolve) => (wake = resolve));
  watcher.rearm();
  watcher.rearm();
  await next;
  await sleep(20);
  t.equal(calls, 2, 'two rearms, one event');
  native.eventfdRead(event.fd);
  watcher.rearm();
  await sleep(20);
  t.equal(calls, 2);
  watcher.close();
  watcher.close();
  native.eventfdSignal(event.fd);
  await sleep(20);
  t.equal(calls, 2, 'none after close');
  t.throws(() => watcher.rearm(), /closed/);
  event.close();
});

t.test('watch: an event on its way is dropped by close', async (t) => {
  let late = 0;
  for (let i = 0; i < 200; i++) {
    const event = native.eventfd(1);
    const watcher = native.watch(event.fd, () => late++);
    watcher.rearm();
    // The thread has long queued it; the event loop has not run yet.
    const until = performance.now() + 0.3;
    while (performance.now() < until);
    watcher.close();
    event.close();
  }
  await sleep(20);
  t.equal(late, 0);
});

t.test('watch: what can’t be watched, and a number used again', async (t) => {
  const file = openSync('/proc/self/maps', 'r');
  const regular = openSync(new URL(import.meta.url).pathname, 'r');
  t.throws(() => native.watch(regular, () => {}), {
    code: 'EPERM',
    syscall: 'epoll_ctl EPOLL_CTL_ADD',
  });
  closeSync(file);
  closeSync(regular);
  t.throws(() => native.watch(0x7ffffff0, () => {}), { code: 'EBADF' });
  const first = native.eventfd(0);
  const stale = native.watch(first.fd, () => {});
  t.throws(() => native.watch(first.fd, () => {}), { code: 'EEXIST' });
  const number = first.fd;
  first.close();
  const second = native.eventfd(1);
  t.equal(second.fd, number, 'the same number');
  let calls = 0;
  const watcher = native.watch(second.fd, () => calls++);
  t.throws(() => stale.rearm(), { code: 'EBADF' });
  stale.close();
  watcher.rearm();
  await sleep(20);
  t.equal(calls, 1, 'closing the stale one has not silenced it');
  watcher.close();
  second.close();
});

t.test('watch: hang-ups are events, exceptions are uncaught ones', async (t) => {
  const [mine, theirs] = native.unixPair();
  const hungUp = new Promise<void>((resolve) => {
    native.watch(mine.fd, resolve).rearm();
  });
  theirs.close();
  await hungUp;
  mine.close();
  t.equal(
    await childStatus(`
      const event = native.eventfd(1);
      process.on('uncaughtException', (error) => process.exit(error.message === 'mine' ? 3 : 4));
      native.watch(event.fd, () => { throw new Error('mine'); }).rearm();
    `),
    3,
  );
});

t.test('watch: collected when idle, kept while it waits', async (t) => {
  const event = native.eventfd(0);
  let calls = 0;
  native.watch(event.fd, () => calls++).rearm();
  await collectUntil(() => false, 5);
  native.eventfdSignal(event.fd);
  for (let i = 0; i < 100 && calls === 0; i++) await sleep(1);
  t.equal(calls, 1);
  let again: unknown;
  await collectUntil(() => {
    try {
      again = native.watch(event.fd, () => {});
      return true;
    } catch {
      return false;
    }
  });
  t.ok(again, 'the idle one was collected, or this would be EEXIST');
  event.close();
});

t.test('watch: the end of the process', async (t) => {
  const watching =
    'const e = native.eventfd(0); const w = native.watch(e.fd, () => {}); w.rearm();';
  t.equal(await childStatus(`${watching} w.unref();`), 0, 'unref: ends by itself');
  t.equal(await childStatus(`${watching} w.close();`), 0, 'closed: ends by itself');
  t.equal(
    await childStatus(`${watching} setTimeout(() => process.exit(5), 50);`),
    5,
    'process.exit',
  );
  t.equal(await childStatus(watching, 700), 'hangs', 'waits for an event');
  t.equal(
    await childStatus(
      `const e = native.eventfd(0); const w = native.watch(e.fd, () => w.close()); w.rearm(); setTimeout(() => native.eventfdSignal(e.fd), 50);`,
    ),
    0,
  );
});

t.test('a worker ended in the middle of everything', async (t) => {
  const before = openFds();
  for (let round = 0; round < 5; round++) {
    const { worker, message } = inWorker(`
      const events = Array.from({ length: 20 }, () => native.eventfd(1));
      const watch = (event) => {
        const watcher = native.watch(event.fd, () => watcher.rearm());
        watcher.rearm();
      };
      events.forEach(watch);
      const memory = native.allocate(4096);
      const pool = native.ioPool(4);
      const pair = native.unixPair();
      pool.submit(native.allocate(64 * 64).buffer, memory.buffer, 0, 64);
      native.vdpaDeviceList().catch(() => {});
      parentPort.postMessage('started');
    `);
    t.equal(await message, 'started');
    await sleep(round * 3);
    await worker.terminate();
  }
  // Terminated inside a call, where Node-API refuses everything from one moment to the next.
  for (let round = 0; round < 5; round++) {
    const { worker, message } = inWorker(`
      parentPort.postMessage('started');
      const into = new Uint8Array(8);
      for (;;) {
        try { native.vduseVqGetInfo(0, 0); } catch {}
        try { native.unixListen('', 0); } catch {}
        const [one, two] = native.unixPair();
        native.sendMessage(one.fd, into, [0, 1], 0);
        for (const owned of native.receiveMessage(two.fd, into, 2).fds) owned.close();
        native.allocate(4096).unmap();
        one.close();
        two.close();
      }
    `);
    await message;
    await sleep(round);
    await worker.terminate();
  }
  t.ok(
    await collectUntil(() => openFds() <= before + 1),
    `${openFds()} descriptors, ${before} before`,
  );
});

/** A folder for sockets: one in the checkout could be too long for sun_path. */
function shortFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  return folder;
}

t.test('unix sockets: messages with descriptors', async (t) => {
  const before = openFds();
  const path = join(shortFolder(t), 'socket');
  const listening = native.unixListen(path, 4);
  t.equal(native.unixAccept(listening.fd), undefined);
  const client = native.unixConnect(path);
  const server = native.unixAccept(listening.fd)!;
  const into = new Uint8Array(64);
  t.equal(native.receiveMessage(server.fd, into, 4), undefined);

  const events = [native.eventfd(11), native.eventfd(12), native.eventfd(13)];
  const numbers = events.map(({ fd }) => fd);
  native.sendMessage(client.fd, Buffer.from('hello'), numbers, 0);
  const received = native.receiveMessage(server.fd, into, 8)!;
  t.equal(received.bytes, 5);
  t.equal(Buffer.from(into.subarray(0, 5)).toString(), 'hello');
  t.equal(received.truncated, false);
  t.strictSame(
    received.fds.map(({ fd }) => native.eventfdRead(fd)),
    [11, 12, 13],
  );
  for (const { fd } of received.fds) t.match(flagsOf(fd), /flags:\t02/, 'close-on-exec');
  for (const one of received.fds) one.close();

  const open = openFds();
  for (const [allowed, taken] of [
    [2, 2],
    [1, 1],
    [0, 0],
  ] as const) {
    native.sendMessage(client.fd, into.subarray(0, 1), numbers, 0);
    const cut = native.receiveMessage(server.fd, into, allowed)!;
    t.equal(cut.fds.length, taken, `${taken} of 3`);
    t.equal(cut.truncated, true);
    for (const one of cut.fds) one.close();
  }
  t.equal(openFds(), open, 'the kernel closed the others');

  const many = Array.from({ length: 253 }, () => native.duplicate(events[0]!.fd));
  native.sendMessage(
    client.fd,
    into,
    many.map(({ fd }) => fd),
    0,
  );
  const all = native.receiveMessage(server.fd, into, 253)!;
  t.equal(all.fds.length, 253);
  for (const one of [...many, ...all.fds]) one.close();
  t.throws(() => native.sendMessage(client.fd, into, new Array(254).fill(0), 0), RangeError);
  t.throws(() => native.sendMessage(client.fd, into, [0x7ffffff0], 0), {
    code: 'EBADF',
    syscall: 'sendmsg',
  });

  client.close();
  t.equal(native.receiveMessage(server.fd, into, 1)!.bytes, 0, 'end of stream');
  t.throws(() => native.sendMessage(server.fd, into, [], 0), { code: 'EPIPE', syscall: 'sendmsg' });
  for (const one of [listening, server, ...events]) one.close();
  t.equal(openFds(), before);
});

/** The `flags:` line of /proc/self/fdinfo. */
function flagsOf(fd: number): string {
  const info = openSync(`/proc/self/fdinfo/${fd}`, 'r');
  const bytes = Buffer.alloc(200);
  const length = readSync(info, bytes);
  closeSync(info);
  return bytes.toString('utf8', 0, length);
}

t.test('unix sockets: a long message, a peer that does not read', async (t) => {
  const [one, two] = native.unixPair();
  const event = native.eventfd(0);
  const long = new Uint8Array(4 << 20).fill(7);
  const start = performance.now();
  t.throws(() => native.sendMessage(one.fd, long, [], 30), {
    code: 'ETIMEDOUT',
    syscall: 'sendmsg',
  });
  t.ok(performance.now() - start < 1000);
  const [sender, receiver] = native.unixPair();
  const { worker, message } = inWorker(
    `native.sendMessage(workerData.fd, new Uint8Array(4 << 20).fill(7), [workerData.event], 10000);
     parentPort.postMessage('sent');`,
    { fd: sender.fd, event: event.fd },
  );
  // Asked for now: it may end before its message is looked at.
  const exited = once(worker, 'exit');
  const into = new Uint8Array(1 << 20);
  let bytes = 0;
  let descriptors = 0;
  while (bytes < 4 << 20) {
    const part = native.receiveMessage(receiver.fd, into, 4);
    if (part === undefined) {
      await sleep(1);
      continue;
    }
    bytes += part.bytes;
    descriptors += part.fds.length;
    for (const { close } of part.fds) t.type(close, 'function');
    for (const owned of part.fds) owned.close();
  }
  t.equal(await message, 'sent');
  t.equal(bytes, 4 << 20);
  t.equal(descriptors, 1, 'sent once');
  await exited;
  for (const owned of [one, two, sender, receiver, event]) owned.close();
});

t.test('unix sockets: paths', async (t) => {
  const folder = shortFolder(t);
  const path = join(folder, 'socket');
  const before = openFds();
  const long = `/${'x'.repeat(107)}`;
  t.throws(() => native.unixListen(long, 1), { name: 'RangeError', message: /107 bytes.*x{107}/ });
  t.throws(() => native.unixConnect(long), { name: 'RangeError', message: /107 bytes/ });
  t.throws(() => native.unixListen('', 1), RangeError);
  t.throws(() => native.unixListen('a\0b', 1), RangeError);
  t.throws(() => native.unixConnect(path), { code: 'ENOENT', syscall: 'connect', path });
  const longest = join(folder, 'y'.repeat(107 - folder.length - 1));
  const listening = native.unixListen(longest, 1);
  t.ok(existsSync(longest));
  t.throws(() => native.unixListen(longest, 1), {
    code: 'EADDRINUSE',
    syscall: 'bind',
    path: longest,
  });
  listening.close();
  t.throws(() => native.unixConnect(longest), { code: 'ECONNREFUSED' });
  const busy = native.unixListen(path, 0);
  const waiting = native.unixConnect(path);
  t.throws(() => native.unixConnect(path), { code: 'EAGAIN' }, 'a full backlog does not wait');
  for (const one of [busy, waiting]) one.close();
  t.equal(openFds(), before);
});

t.test('setNonblocking', async (t) => {
  const [one, two] = native.unixPair();
  t.match(flagsOf(one.fd), /02004002/);
  native.setNonblocking(one.fd, false);
  t.match(flagsOf(one.fd), /02000002/);
  writeSync(two.fd, 'x');
  t.equal(readSync(one.fd, Buffer.alloc(1)), 1);
  native.setNonblocking(one.fd, true);
  t.match(flagsOf(one.fd), /02004002/);
  t.throws(() => readSync(one.fd, Buffer.alloc(1)), { code: 'EAGAIN' });
  one.close();
  two.close();
});
