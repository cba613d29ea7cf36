import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readlinkSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { native } from '../../../lib/native/index.ts';
import { Connection } from '../../../lib/transport/vhost-user/connection.ts';
import { SocketError } from '../../../lib/transport/vhost-user/index.ts';
import { buildMessage, buildU64, Request } from '../../../lib/virtio/vhost-user-messages.ts';
import {
  handshake,
  openFds,
  Peer,
  Served,
  socketFolder,
  startRing,
  ToyBackend,
} from './harness.ts';

function folder(t: Test): { path: string; folder: string } {
  const { path, remove } = socketFolder();
  t.teardown(remove);
  return { path, folder: path.slice(0, -2) };
}

/** The error of a server that must not start. */
function refused(options: ConstructorParameters<typeof Served>[0]): SocketError {
  try {
    void new Served(options).server.close();
  } catch (error) {
    if (error instanceof SocketError) return error;
    throw error;
  }
  throw new Error('it started');
}

t.test(
  'a path: one front end after the other, the second waits; the file goes at the end',
  async (t) => {
    const before = openFds();
    const { path } = folder(t);
    const served = new Served({ path });
    t.equal(served.server.path, path);
    const first = Peer.to(path);
    t.equal(await first.askU64(Request.GetQueueNum), 2n);
    const second = Peer.to(path);
    second.send(Request.GetQueueNum);
    let answered = false;
    const reply = second.reply().then(() => {
      answered = true;
    });
    await sleep(50);
    t.notOk(answered, 'while the first is served');
    first.close();
    await reply;
    second.close();
    await served.ended(2);
    await served.server.close();
    await served.server.close();
    t.notOk(existsSync(path));
    t.same(served.ends, [undefined, undefined]);
    t.equal(openFds(), before);
  },
);

t.test('close: what is served is drained first', async (t) => {
  const before = openFds();
  const { path } = folder(t);
  const served = new Served({ path });
  const peer = Peer.to(path);
  const guest = handshake(peer);
  const event = native.eventfd(0);
  startRing(peer, 0, event, event);
  await peer.sync();
  let finishIo = () => {};
  served.backend.drained = new Promise((resolve) => {
    finishIo = resolve;
  });
  let closed = false;
  const closing = served.server.close().then(() => {
    closed = true;
  });
  await sleep(30);
  t.notOk(closed, 'I/O is in flight');
  finishIo();
  await closing;
  t.same(served.backend.log.slice(-2), ['stop 0 at 0', 'memory 0']);
  await t.rejects(peer.reply(), /ended/);
  peer.close();
  for (const fd of [guest, event]) fd.close();
  t.equal(openFds(), before);
});

t.test(
  'a failure at the end of a connection is told, and the next front end is served',
  async (t) => {
    const { path } = folder(t);
    const served = new Served({ path });
    const peer = Peer.to(path);
    const guest = handshake(peer);
    const event = native.eventfd(0);
    startRing(peer, 0, event, event);
    await peer.sync();
    served.backend.failing = 'stopQueue';
    peer.close();
    t.match(await served.ended(1), { message: 'stopQueue cannot be done' });
    const next = Peer.to(path);
    t.equal(await next.askU64(Request.GetQueueNum), 2n);
    next.close();
    await served.server.close();
    for (const fd of [guest, event]) fd.close();
  },
);

t.test('a socket file nobody listens on is replaced, a live one is not', async (t) => {
  const { path } = folder(t);
  const left = native.unixListen(path, 1);
  const error = refused({ path });
  t.equal(error.code, 'ERR_VDUSE_SOCKET_IN_USE');
  t.match(error.message, /^socket .*: another process listens on it \(stop that one, or/);
  left.close();
  t.ok(existsSync(path), 'left behind');
  const served = new Served({ path });
  const peer = Peer.to(path);
  t.equal(await peer.askU64(Request.GetQueueNum), 2n);
  peer.close();
  // Somebody else's file by now: it stays.
  renameSync(path, `${path}.old`);
  const other = native.unixListen(path, 1);
  await served.server.close();
  t.ok(existsSync(path));
  other.close();
});

t.test('a live one with a full backlog is live', async (t) => {
  const { path } = folder(t);
  const busy = native.unixListen(path, 0);
  const waiting = native.unixConnect(path);
  t.equal(refused({ path }).code, 'ERR_VDUSE_SOCKET_IN_USE');
  waiting.close();
  busy.close();
});

t.test('paths that cannot be', async (t) => {
  const { path, folder: dir } = folder(t);
  const cases: [string, RegExp][] = [
    ['', /not a path/],
    ['a\0b', /not a path/],
    [
      `${dir}/${'x'.repeat(108)}`,
      /the path has \d+ bytes, at most 107 are possible \(use a shorter/,
    ],
    [`${dir}/missing/s`, /its folder does not exist \(create it\)/],
    [`${dir}/file/s`, /part of its path is no folder/],
    [`${dir}/file`, /a file is there that is no socket \(remove it/],
    [`${dir}/link`, /a file is there that is no socket/],
    [dir, /a file is there that is no socket/],
  ];
  writeFileSync(`${dir}/file`, '');
  symlinkSync('nowhere', `${dir}/link`);
  for (const [bad, message] of cases) {
    const error = refused({ path: bad });
    t.match(error.message, message);
    t.equal(error.code, 'ERR_VDUSE_SOCKET_PATH');
  }
  // 107 bytes are just short enough. Bytes count, not characters.
  const longest = `${dir}/`.padEnd(107, 'x');
  await new Served({ path: longest }).server.close();
  t.match(refused({ path: `${dir}/`.padEnd(100, 'é') }).message, /the path has/);
  t.notOk(existsSync(path));
});

t.test(
  'a folder without permission',
  { skip: process.getuid?.() !== 0 && 'needs root' },
  async (t) => {
    const { folder: dir } = folder(t);
    mkdirSync(`${dir}/closed`, { mode: 0o500 });
    chmodSync(dir, 0o755);
    process.seteuid?.(65534);
    try {
      t.match(refused({ path: `${dir}/closed/s` }).message, /no permission to create it/);
    } finally {
      process.seteuid?.(0);
    }
  },
);

t.test('mode and group', async (t) => {
  const { path } = folder(t);
  const mode = () => lstatSync(path).mode & 0o777;
  const mask = process.umask();
  let served = new Served({ path, mode: 0o606 });
  t.equal(mode(), 0o606);
  t.equal(process.umask(), mask, 'the mask is as before');
  await served.server.close();
  const gid = process.getgid?.() ?? 0;
  served = new Served({ path, group: gid });
  t.equal(mode(), 0o660, 'a group without a mode may connect');
  t.equal(lstatSync(path).gid, gid);
  await served.server.close();
  served = new Served({ path, group: String(gid), mode: 0o620 });
  t.equal(mode(), 0o620);
  await served.server.close();
  const name = spawnSync('id', ['-gn'], { encoding: 'utf8' }).stdout.trim();
  served = new Served({ path, group: name });
  t.equal(lstatSync(path).gid, gid);
  await served.server.close();
  const error = refused({ path, group: 'no-such-group' });
  t.equal(error.code, 'ERR_VDUSE_SOCKET_GROUP');
  t.match(error.message, /no-such-group: .*has no such group/);
  t.notOk(existsSync(path));
});

t.test('a descriptor that listens', async (t) => {
  const before = openFds();
  const { path } = folder(t);
  const listener = native.unixListen(path, 4);
  // It came from another program, and blocks.
  native.setNonblocking(listener.fd, false);
  // Somebody may be waiting already.
  const first = Peer.to(path);
  const served = new Served({ fd: listener.release() });
  t.equal(await first.askU64(Request.GetQueueNum), 2n);
  first.close();
  const second = Peer.to(path);
  t.equal(await second.askU64(Request.GetQueueNum), 2n);
  second.close();
  await served.server.close();
  t.ok(existsSync(path), 'the file is not ours');
  t.equal(openFds(), before);
});

t.test('a descriptor that is connected: the end of the connection is the end', async (t) => {
  const [mine, theirs] = native.unixPair();
  native.setNonblocking(theirs.fd, false);
  const served = new Served({ fd: theirs.release() });
  const peer = new Peer(mine);
  t.equal(await peer.askU64(Request.GetQueueNum), 2n);
  let ended = false;
  void served.server.ended.then(() => {
    ended = true;
  });
  await sleep(20);
  t.notOk(ended);
  peer.close();
  await served.server.ended;
  t.same(served.ends, [undefined]);
});

t.test('a descriptor that is neither', async (t) => {
  const event = native.eventfd(0);
  const error = refused({ fd: event.fd });
  t.equal(error.code, 'ERR_VDUSE_SOCKET_FD');
  t.match(error.message, /^descriptor \d+: neither a listening nor a connected unix stream socket/);
  t.match(readlinkSync(`/proc/self/fd/${event.fd}`), 'eventfd', 'it is left alone');
  event.close();
});

t.test('a message that never becomes whole', async (t) => {
  const [mine, theirs] = native.unixPair();
  const connection = new Connection(native, theirs, 50);
  const event = native.eventfd(0);
  const bytes = buildMessage(Request.SetFeatures, 0, buildU64(1n));
  native.sendMessage(mine.fd, bytes.subarray(0, 15), [event.fd], 0);
  await t.rejects(connection.receive(), {
    code: 'ERR_VDUSE_VHOST_USER_TIMEOUT',
    message: 'vhost-user: SET_FEATURES: only part of the message came in 0.05 s',
  });
  connection.close();
  for (const fd of [mine, event]) fd.close();
});

t.test('the end may be asked for at any time', async (t) => {
  const [mine, theirs] = native.unixPair();
  const connection = new Connection(native, theirs);
  const waiting = connection.receive();
  connection.end();
  t.equal(await waiting, undefined);
  t.equal(await connection.receive(), undefined);
  connection.close();
  mine.close();
  const backend = new ToyBackend();
  const [a, b] = native.unixPair();
  const served = new Served({ fd: b.release() }, backend);
  await served.server.close();
  t.same(served.ends, [undefined]);
  a.close();
});
