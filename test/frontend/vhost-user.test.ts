import t from 'tap';
import { type StartOptions, VhostUserFrontend } from '../../lib/frontend/index.ts';
import { native, type OwnedFd } from '../../lib/native/index.ts';
import { Feature, type SplitDriver } from '../../lib/virtio/index.ts';
import { MessageAssembler } from '../../lib/virtio/vhost-user-assembler.ts';
import {
  buildConfig,
  buildMessage,
  buildU64,
  FLAG_REPLY,
  PROTOCOL_FEATURES,
  ProtocolFeature,
  Request,
} from '../../lib/virtio/vhost-user-messages.ts';
import {
  CONFIG,
  openFds,
  Served,
  socketFolder,
  ToyBackend,
  until,
} from '../transport/vhost-user/harness.ts';

/** A front end of a toy device that copies what it reads into what it writes. */
async function toy(timeoutMs = 10_000): Promise<{ device: VhostUserFrontend; served: Served }> {
  const [mine, theirs] = native.unixPair();
  const served = new Served({ fd: theirs.release() }, new ToyBackend(4));
  const device = await VhostUserFrontend.connect({ fd: mine.release(), timeoutMs });
  return { device, served };
}

function bytes(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 13) & 0xff);
}

const KINDS: [string, StartOptions][] = [
  ['split', {}],
  ['split, no indirect tables', { without: Feature.IndirectDesc }],
  ['split, no event index', { without: Feature.EventIndex }],
  ['split, bare', { without: Feature.EventIndex | Feature.IndirectDesc }],
  ['split, polled', { polled: true }],
  ['packed', { packed: true }],
  ['packed, no indirect tables', { packed: true, without: Feature.IndirectDesc }],
  ['packed, no event index', { packed: true, without: Feature.EventIndex }],
  ['packed, polled', { packed: true, polled: true }],
];

for (const [name, options] of KINDS) {
  t.test(`requests come back: ${name}`, async (t) => {
    const before = openFds();
    const { device, served } = await toy();
    const queues = await device.start({
      ...options,
      queues: 3,
      queueSize: 16,
      bufferBytes: 1 << 16,
    });
    t.equal(device.features, device.offeredFeatures & (device.features | Feature.Version1));
    t.equal((device.features & Feature.RingPacked) !== 0n, options.packed ?? false);
    // Far more than the rings and the buffers hold.
    const requests = Array.from({ length: 300 }, async (_, i) => {
      const queue = queues[i % 3]!;
      const request = bytes(1 + ((i * 37) % 3000), i);
      const half = request.length >> 1;
      const parts = half > 0 ? [request.subarray(0, half), request.subarray(half)] : [request];
      const { written, data } = await queue.submit(parts, [request.length, 100]);
      const same = Buffer.compare(data[0]!, request) === 0;
      return same && written === request.length && data.length === 2 && data[1]!.length === 100;
    });
    t.ok((await Promise.all(requests)).every(Boolean), 'each got its own answer');
    t.equal(queues[0]!.outstanding, 0);
    await device.close();
    await device.close();
    await served.server.ended;
    t.same(served.ends, [undefined]);
    t.equal(openFds(), before);
  });
}

t.test('configuration, restart, reset', async (t) => {
  const { device, served } = await toy();
  t.equal(device.maxQueues, 4);
  t.same(await device.readConfig(0, 16), CONFIG);
  t.same(await device.readConfig(4, 3), CONFIG.slice(4, 7));
  await device.writeConfig(1, Uint8Array.of(77));
  t.same(await device.readConfig(1, 1), Uint8Array.of(77));
  await t.rejects(device.writeConfig(15, new Uint8Array(9)), {
    code: 'ERR_VDUSE_VHOST_USER_REFUSED',
    request: 'SET_CONFIG',
  });
  for (const packed of [false, true, false]) {
    const [queue] = await device.start({ packed });
    await t.rejects(device.start(), /run already/);
    const { data } = await queue!.submit([bytes(5, 1)], [5]);
    t.same(data[0], bytes(5, 1));
    await device.stop();
    await t.rejects(queue!.submit([bytes(5, 1)], [5]), /queue stopped/);
  }
  await device.start({ queues: 4 });
  await device.reset();
  t.equal(served.backend.running.size, 0);
  t.same(await device.readConfig(1, 1), CONFIG.slice(1, 2), 'as new');
  await device.close();
  await served.server.ended;
});

t.test('what the caller gets wrong', async (t) => {
  const { device } = await toy();
  await t.rejects(device.start({ queues: 5 }), /5 queues: the device has 4/);
  await t.rejects(device.start({ queues: 0 }), RangeError);
  await t.rejects(device.start({ queueSize: 12 }), /12 entries: no power of two/);
  await t.rejects(device.start({ queueSize: 2048 }), /not 1 … 1024/);
  await t.rejects(device.start({ queues: 4, bufferBytes: 2 ** 30 }), /shared memory, at most/);
  const [queue] = await device.start({ queueSize: 8, bufferBytes: 8192 });
  t.equal(queue!.maxBytes, 8192);
  await t.rejects(queue!.submit([], []), /needs buffers/);
  await t.rejects(queue!.submit([new Uint8Array(0)], [1]), /none of them empty/);
  await t.rejects(queue!.submit([bytes(8192, 0)], [1]), /see queueSize and bufferBytes/);
  await t.rejects(queue!.submit([], Array(9).fill(1)), /see queueSize/);
  await t.rejects(queue!.submit([], [-1]), RangeError);
  await device.close();
  await t.rejects(device.readConfig(0, 1), /closed at this end/);
  await t.rejects(VhostUserFrontend.connect({ path: '/nonexistent/s' }), { code: 'ENOENT' });
});

t.test('the back end vanishes: everything that waits is rejected', async (t) => {
  const { device, served } = await toy();
  served.backend.mute = true;
  const [queue] = await device.start({ queueSize: 4 });
  const waiting = Array.from({ length: 10 }, () => queue!.submit([bytes(9, 1)], [9]));
  const asserted = waiting.map((one) =>
    t.rejects(one, { code: 'ERR_VDUSE_VHOST_USER_CLOSED', message: /has closed the connection/ }),
  );
  await served.server.close();
  await Promise.all(asserted);
  await t.rejects(queue!.submit([bytes(9, 1)], [9]), /has closed the connection/);
  await t.rejects(device.readConfig(0, 1), /has closed the connection/);
  await t.rejects(device.stop(), /has closed the connection/);
  await device.close();
});

t.test('a device that does not answer', async (t) => {
  const { device, served } = await toy(60);
  served.backend.mute = true;
  const [queue] = await device.start({ queueSize: 4 });
  // The second has to wait for room, and is given up there.
  const waiting = [1, 2, 3, 4].map(() => queue!.submit([bytes(9, 1)], [9, 9]));
  for (const one of waiting) {
    await t.rejects(one, {
      code: 'ERR_VDUSE_VHOST_USER_TIMEOUT',
      message: /queue 0: the device did not answer in 0.06 s/,
    });
  }
  // Late answers are not taken for those of later requests.
  served.backend.mute = false;
  served.backend.serve(served.backend.running.get(0)!);
  const { data } = await queue!.submit([bytes(9, 5)], [9]);
  t.same(data[0], bytes(9, 5));
  await device.close();
});

t.test('a device that answers what was never asked, or too much', async (t) => {
  const answers: [RegExp, (driver: SplitDriver) => void][] = [
    [/answers chain 9/, (driver) => driver.used32.set([9, 0], 1)],
    [/answers chain 4294967295/, (driver) => driver.used32.set([0xffff_ffff, 0], 1)],
    [/says it wrote 5000 bytes where there are 9/, (driver) => driver.used32.set([0, 5000], 1)],
  ];
  for (const [message, answer] of answers) {
    const { device, served } = await toy();
    served.backend.mute = true;
    const [queue] = await device.start({ queueSize: 16, without: Feature.EventIndex });
    const waiting = queue!.submit([bytes(9, 1)], [9]);
    const driver = queue!.driver as SplitDriver;
    answer(driver);
    Atomics.store(driver.used, 1, 1);
    native.eventfdSignal(queue!.call!.fd);
    await t.rejects(waiting, { code: 'ERR_VDUSE_VHOST_USER_PROTOCOL', message });
    await device.close();
  }
});

/** As recvmsg; a connection that was reset has ended. */
function receive(socket: OwnedFd, into: Uint8Array) {
  try {
    return native.receiveMessage(socket.fd, into, 8);
  } catch {
    return { bytes: 0, fds: [], truncated: false };
  }
}

/** A back end that answers as it is told. */
class Scripted {
  readonly mine: OwnedFd;
  readonly requests: number[] = [];
  readonly #socket: OwnedFd;

  constructor(answer: (request: number, payload: Uint8Array) => Uint8Array | undefined) {
    const [mine, theirs] = native.unixPair();
    this.mine = mine;
    this.#socket = theirs;
    const assembler = new MessageAssembler<OwnedFd>(8);
    const watcher = native.watch(theirs.fd, () => {
      for (;;) {
        const received = receive(theirs, assembler.target);
        if (received === undefined) break;
        if (received.bytes === 0) {
          watcher.close();
          theirs.close();
          return;
        }
        const message = assembler.accept(received.bytes, received.fds);
        if (message === undefined) continue;
        for (const fd of message.fds) fd.close();
        const { request } = message.header;
        this.requests.push(request);
        const reply = answer(request, message.payload);
        if (reply !== undefined) this.raw(buildMessage(request, FLAG_REPLY, reply));
      }
      watcher.rearm();
    });
    watcher.rearm();
  }

  raw(message: Uint8Array, fds: number[] = []): void {
    native.sendMessage(this.#socket.fd, message, fds, 1000);
  }
}

/** Requests that have replies of their own, answered well. */
function well(features: bigint, protocolFeatures: bigint) {
  return (request: number, payload: Uint8Array): Uint8Array | undefined => {
    switch (request) {
      case Request.GetFeatures:
        return buildU64(features);
      case Request.GetProtocolFeatures:
        return buildU64(protocolFeatures);
      case Request.GetQueueNum:
        return buildU64(2n);
      case Request.GetVringBase:
        return payload;
      default:
        return undefined;
    }
  };
}

t.test('back ends of little ability', async (t) => {
  const bare = new Scripted(well(Feature.Version1, 0n));
  let device = await VhostUserFrontend.connect({ fd: bare.mine.release() });
  t.equal(device.maxQueues, 1);
  await t.rejects(device.readConfig(0, 4), /GET_CONFIG: the back end does not offer it/);
  await t.rejects(device.start({ packed: true }), /has no packed rings/);
  await device.start();
  await device.reset();
  await device.close();
  t.notOk(bare.requests.includes(Request.SetVringEnable));
  await until(() => bare.requests.includes(Request.ResetOwner));

  const some = new Scripted(well(Feature.Version1 | PROTOCOL_FEATURES, ProtocolFeature.Mq));
  device = await VhostUserFrontend.connect({ fd: some.mine.release() });
  t.equal(device.maxQueues, 2);
  await device.start({ queues: 2 });
  await device.close();
  const switched = some.requests.filter((request) => request === Request.SetVringEnable);
  t.equal(switched.length, 4, 'two rings, on and off');
});

t.test('back ends that break the protocol', async (t) => {
  const all = ProtocolFeature.Config | ProtocolFeature.ReplyAck;
  const good = well(Feature.Version1 | PROTOCOL_FEATURES, all);
  const before = openFds();
  const cases: [RegExp, ConstructorParameters<typeof Scripted>[0]][] = [
    [
      /GET_FEATURES: payload of 4 bytes, 8 expected/,
      (request) => (request === Request.SetOwner ? undefined : new Uint8Array(4)),
    ],
    [
      /GET_CONFIG: 2 bytes instead of 4/,
      (request, payload) =>
        request === Request.GetConfig
          ? buildConfig(0, 0, new Uint8Array(2))
          : good(request, payload),
    ],
    [
      /GET_CONFIG: payload of 0 bytes, too short/,
      (request, payload) =>
        request === Request.GetConfig ? new Uint8Array(0) : good(request, payload),
    ],
    [
      /SET_FEATURES: refused by the back end/,
      (request, payload) =>
        request === Request.GetConfig
          ? buildConfig(0, 0, new Uint8Array(4))
          : (good(request, payload) ?? (payload.length > 0 ? buildU64(1n) : undefined)),
    ],
  ];
  for (const [message, answer] of cases) {
    const answering: ConstructorParameters<typeof Scripted>[0] = (request, payload) =>
      request === Request.SetProtocolFeatures ? undefined : answer(request, payload);
    const peer = new Scripted(answering);
    const connected = VhostUserFrontend.connect({ fd: peer.mine.release() });
    await t.rejects(
      connected.then(async (device) => {
        try {
          await device.readConfig(0, 4);
          await device.start();
        } finally {
          await device.close();
        }
      }),
      { name: 'VhostUserError', message },
    );
  }
  await until(() => openFds() === before);

  const silent = new Scripted((request, payload) =>
    request === Request.GetConfig ? undefined : good(request, payload),
  );
  const device = await VhostUserFrontend.connect({ fd: silent.mine.release(), timeoutMs: 40 });
  await t.rejects(device.readConfig(0, 4), {
    code: 'ERR_VDUSE_VHOST_USER_TIMEOUT',
    message: /GET_CONFIG: no answer from the back end in 0.04 s/,
  });
  await device.close();

  for (const [message, unasked, fds] of [
    [/GET_FEATURES: comes unasked/, buildMessage(1, FLAG_REPLY, buildU64(0n)), []],
    [/GET_FEATURES: comes unasked/, buildMessage(1, 0, buildU64(0n)), []],
    [/version 0/, new Uint8Array(12), []],
    [/more than 0 file descriptors/, buildMessage(1, FLAG_REPLY, buildU64(0n)), [0]],
  ] as [RegExp, Uint8Array, number[]][]) {
    const peer = new Scripted((request, payload) => {
      if (request !== Request.GetConfig) return good(request, payload);
      peer.raw(unasked, fds);
      return undefined;
    });
    const device = await VhostUserFrontend.connect({ fd: peer.mine.release() });
    await t.rejects(device.readConfig(0, 4), { name: 'VhostUserError', message });
    await device.close();
  }
  await until(() => openFds() === before);
});

t.test('a busy back end: connecting waits for room in its backlog', async (t) => {
  const { path, remove } = socketFolder();
  t.teardown(remove);
  const listener = native.unixListen(path, 0);
  const before = native.unixConnect(path);
  await t.rejects(VhostUserFrontend.connect({ path, timeoutMs: 50 }), { code: 'EAGAIN' });
  const connecting = VhostUserFrontend.connect({ path });
  before.close();
  const served = new Served({ fd: listener.release() });
  const device = await connecting;
  t.same(await device.readConfig(0, 2), CONFIG.slice(0, 2));
  await device.close();
  await served.server.close();
});
