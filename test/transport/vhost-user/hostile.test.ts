import { closeSync, openSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { native, type OwnedFd } from '../../../lib/native/index.ts';
import { Feature } from '../../../lib/virtio/index.ts';
import {
  buildConfig,
  buildMemRegion,
  buildMemTable,
  buildMessage,
  buildU64,
  buildVringAddresses,
  buildVringState,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  NO_PAYLOAD,
  PROTOCOL_FEATURES,
  ProtocolFeature,
  type RegionDescription,
  Request,
  requestName,
  VhostUserError,
} from '../../../lib/virtio/vhost-user-messages.ts';
import {
  GUEST_BASE,
  handshake,
  MEMORY_BYTES,
  openFds,
  Peer,
  region,
  ringMessages,
  Served,
  socketFolder,
  startRing,
  USER_BASE,
} from './harness.ts';

const { path, remove } = socketFolder();
const event = native.eventfd(0);
const memory = native.memfd('memory', MEMORY_BYTES);
const folder = path.slice(0, -1);
writeFileSync(`${folder}plain`, new Uint8Array(MEMORY_BYTES));
const readOnly = openSync(`${folder}plain`, 'r');
const directory = openSync(folder, 'r');

const served = new Served({ path });
t.teardown(async () => {
  await served.server.close();
  event.close();
  memory.close();
  closeSync(readOnly);
  closeSync(directory);
  remove();
});

const ALL = ProtocolFeature.ReplyAck | ProtocolFeature.Config | ProtocolFeature.ConfigureMemSlots;

/** A whole, well-formed session; the device must be as good as new for it. */
async function sane(): Promise<void> {
  const peer = Peer.to(path);
  const guest = handshake(peer);
  startRing(peer, 0, event, event);
  const base = await peer.base(0);
  peer.close();
  guest.close();
  if (base !== 0) throw new Error(`base ${base}`);
}

/** Do `bad` on a connection of its own: the connection ends, naming the reason; nothing leaks. */
async function ends(
  bad: (peer: Peer, guest: OwnedFd) => void | Promise<void>,
  options: { protocol?: bigint } = {},
): Promise<VhostUserError> {
  const before = openFds();
  const count = served.ends.length;
  const peer = Peer.to(path);
  const guest = handshake(peer, options.protocol ?? 0n);
  await bad(peer, guest);
  const error = await served.ended(count + 1);
  peer.close();
  guest.close();
  await sane();
  await served.ended(count + 2);
  t.equal(served.ends[count + 1], undefined, 'the next front end is served');
  t.equal(openFds(), before, 'no descriptor is left');
  t.equal(served.backend.running.size, 0);
  t.same(served.backend.pieces, []);
  if (!(error instanceof VhostUserError)) throw error ?? new Error('the connection went on');
  return error;
}

/** A message and what is wrong with it. */
type Case = [RegExp, number, Uint8Array?, number[]?];

const { SetMemTable, AddMemReg, SetVringAddr } = Request;
const table = (...regions: RegionDescription[]) => buildMemTable(regions);
const one = memory.fd;
const addresses = (change: { descriptor?: bigint; used?: bigint; available?: bigint }) =>
  buildVringAddresses({
    index: 0,
    flags: 0,
    descriptor: USER_BASE,
    available: USER_BASE + 0x400n,
    used: USER_BASE + 0x800n,
    ...change,
  });
const END = USER_BASE + BigInt(MEMORY_BYTES);

const CASES: Case[] = [
  // unknown and misplaced requests
  [/request 0: not known/, 0],
  [/request 99: not known/, 99],
  [/request 4294967295: not known/, 0xffff_ffff],
  [/SET_LOG_BASE: not known/, 6, new Uint8Array(16), [event.fd]],
  [/SET_BACKEND_REQ_FD: not known/, 21, NO_PAYLOAD, [event.fd]],
  [/GET_INFLIGHT_FD: not known/, 31, new Uint8Array(24)],
  [
    /GET_CONFIG: its protocol feature was not negotiated/,
    Request.GetConfig,
    buildConfig(0, 0, NO_PAYLOAD),
  ],
  [/ADD_MEM_REG: its protocol feature/, AddMemReg, buildMemRegion(region()), [one]],
  [/RESET_DEVICE: its protocol feature/, Request.ResetDevice],
  // sizes
  [/SET_OWNER: payload of 1 bytes, 0 expected/, Request.SetOwner, new Uint8Array(1)],
  [/GET_FEATURES: payload of 8 bytes/, Request.GetFeatures, new Uint8Array(8)],
  [/SET_FEATURES: payload of 0 bytes, 8 expected/, Request.SetFeatures],
  [/SET_FEATURES: payload of 9 bytes/, Request.SetFeatures, new Uint8Array(9)],
  [/SET_VRING_NUM: payload of 4 bytes/, Request.SetVringNum, new Uint8Array(4)],
  [/SET_VRING_ADDR: payload of 39 bytes/, SetVringAddr, new Uint8Array(39)],
  [/GET_VRING_BASE: payload of 12 bytes/, Request.GetVringBase, new Uint8Array(12)],
  [/SET_VRING_KICK: payload of 4 bytes/, Request.SetVringKick, new Uint8Array(4), [event.fd]],
  [/SET_MEM_TABLE: payload of 7 bytes/, SetMemTable, new Uint8Array(7)],
  [
    /SET_MEM_TABLE: payload of 39 bytes, 40 exp/,
    SetMemTable,
    table(region()).subarray(0, 39),
    [one],
  ],
  [/SET_MEM_TABLE: 9 regions, more than 8/, SetMemTable, Uint8Array.of(9, 0, 0, 0, 0, 0, 0, 0)],
  [/SET_MEM_TABLE: 4294967295 regions/, SetMemTable, new Uint8Array(8).fill(255)],
  // file descriptors
  [/SET_MEM_TABLE: 0 file descriptors for 1 regions/, SetMemTable, table(region())],
  [/SET_MEM_TABLE: 2 file descriptors for 1 regions/, SetMemTable, table(region()), [one, one]],
  [/SET_MEM_TABLE: 1 file descriptors for 0 regions/, SetMemTable, table(), [one]],
  [/more than 8 file descriptors/, SetMemTable, table(region()), Array(9).fill(one)],
  [/more than 8 file descriptors/, SetMemTable, table(region()), Array(200).fill(one)],
  [/GET_FEATURES: 1 file descriptors, 0 expected/, Request.GetFeatures, NO_PAYLOAD, [one]],
  [
    /SET_VRING_NUM: 8 file descriptors/,
    Request.SetVringNum,
    ringMessages.num(0),
    Array(8).fill(one),
  ],
  [/SET_VRING_CALL: queue 0: 0 file desc.*against/, Request.SetVringCall, ringMessages.fd(0)],
  [
    /SET_VRING_CALL: queue 0: 1 file desc/,
    Request.SetVringCall,
    ringMessages.fd(0, false),
    [event.fd],
  ],
  [/SET_VRING_ERR: 2 file desc/, Request.SetVringErr, ringMessages.fd(0), [event.fd, event.fd]],
  [/SET_VRING_CALL: queue 0: its .* no eventfd/, Request.SetVringCall, ringMessages.fd(0), [one]],
  [/SET_VRING_KICK: queue 0: its .* no eventfd/, Request.SetVringKick, ringMessages.fd(0), [one]],
  [/SET_VRING_KICK: unknown bits in 0x10000/, Request.SetVringKick, buildU64(0x10000n), [event.fd]],
  // features
  [
    /SET_FEATURES: bits 0x8000000000000000 were not offered/,
    Request.SetFeatures,
    buildU64(2n ** 63n),
  ],
  [
    /SET_FEATURES: bits 0x4000000 were/,
    Request.SetFeatures,
    buildU64(Feature.Version1 | (1n << 26n)),
  ],
  [/SET_PROTOCOL_FEATURES: bits 0x1002 were/, Request.SetProtocolFeatures, buildU64(0x1002n)],
  // memory regions
  [/region 0x100000\+0x0: of size 0/, SetMemTable, table(region({ size: 0n })), [one]],
  [/too large/, SetMemTable, table(region({ size: 2n ** 63n })), [one]],
  [/not aligned to pages/, SetMemTable, table(region({ guestAddress: GUEST_BASE + 1n })), [one]],
  [/not aligned to pages/, SetMemTable, table(region({ userAddress: USER_BASE + 512n })), [one]],
  [/not aligned to pages/, SetMemTable, table(region({ mmapOffset: 2048n, size: 4096n })), [one]],
  [/ends beyond its file of 262144 bytes/, SetMemTable, table(region({ size: 0x40001n })), [one]],
  [/ends beyond its file/, SetMemTable, table(region({ mmapOffset: 4096n })), [one]],
  [/ends beyond its file/, SetMemTable, table(region({ mmapOffset: 2n ** 64n - 4096n })), [one]],
  [
    /beyond the address space/,
    SetMemTable,
    table(region({ guestAddress: 2n ** 64n - 4096n })),
    [one],
  ],
  [
    /beyond the address space/,
    SetMemTable,
    table(region({ guestAddress: 2n ** 53n - 4096n })),
    [one],
  ],
  [
    /beyond the address space/,
    SetMemTable,
    table(region({ userAddress: 2n ** 64n - 4096n })),
    [one],
  ],
  [/region 0x100000\+0x40000 overlaps/, SetMemTable, table(region(), region()), [one, one]],
  [
    /region 0x13f000\+0x40000 overlaps region 0x100000\+0x40000/,
    SetMemTable,
    table(region(), region({ guestAddress: GUEST_BASE + 0x3f000n, userAddress: 0n })),
    [one, one],
  ],
  [
    /overlaps/,
    SetMemTable,
    table(region(), region({ guestAddress: 0x9000_0000n, userAddress: USER_BASE + 4096n })),
    [one, one],
  ],
  [/no file/, SetMemTable, table(region()), [event.fd]],
  [/no file/, SetMemTable, table(region()), [directory]],
  [/SET_MEM_TABLE: .*EACCES|permission denied/i, SetMemTable, table(region()), [readOnly]],
  // rings
  [/SET_VRING_NUM: queue 2: the device has 2/, Request.SetVringNum, ringMessages.num(2)],
  [/SET_VRING_NUM: queue 4294967295/, Request.SetVringNum, ringMessages.num(0xffff_ffff)],
  [/SET_VRING_KICK: queue 255/, Request.SetVringKick, ringMessages.fd(255), [event.fd]],
  [/GET_VRING_BASE: queue 7/, Request.GetVringBase, ringMessages.base(7)],
  [/SET_VRING_ENABLE: queue 2/, Request.SetVringEnable, ringMessages.enable(2, 1)],
  [/SET_VRING_NUM: queue 0: 0 entries, not 1 … 1024/, Request.SetVringNum, ringMessages.num(0, 0)],
  [/SET_VRING_NUM: queue 0: 1025 entries/, Request.SetVringNum, ringMessages.num(0, 1025)],
  [/SET_VRING_BASE: queue 0: base 65536/, Request.SetVringBase, ringMessages.base(0, 65536)],
  [/SET_VRING_ENABLE: queue 0: 2 is neither/, Request.SetVringEnable, ringMessages.enable(0, 2)],
  [/SET_VRING_ADDR: queue 5/, SetVringAddr, ringMessages.addr(5, 0)],
  [/SET_VRING_ADDR: flags 0x1 were not offered/, SetVringAddr, ringMessages.addr(0, 0, 1)],
  [
    /descriptors at 0x7f1234500008: not aligned to 16/,
    SetVringAddr,
    addresses({ descriptor: USER_BASE + 8n }),
  ],
  [/avail ring at .*: not aligned to 2/, SetVringAddr, addresses({ available: USER_BASE + 1n })],
  [/used ring at .*: not aligned to 4/, SetVringAddr, addresses({ used: USER_BASE + 2n })],
  [/descriptors at 0x0: not in the memory/, SetVringAddr, addresses({ descriptor: 0n })],
  [/used ring at 0x.*: not in the memory/, SetVringAddr, addresses({ used: END })],
  [/avail ring at .*: not in the memory/, SetVringAddr, addresses({ available: 2n ** 64n - 2n })],
  // a guest address is no user address
  [/descriptors at 0x100000: not in/, SetVringAddr, addresses({ descriptor: GUEST_BASE })],
  [
    /SET_VRING_KICK: queue 1: its size and addresses/,
    Request.SetVringKick,
    ringMessages.fd(1),
    [event.fd],
  ],
];

for (const [expected, request, payload, fds] of CASES) {
  t.test(`${requestName(request)}: ${expected.source}`, async (t) => {
    const error = await ends((peer) => peer.send(request, payload, fds));
    t.match(error.message, expected);
    t.equal(error.code, 'ERR_VDUSE_VHOST_USER_PROTOCOL');
  });
}

t.test('headers that are none', async (t) => {
  const header = (...words: number[]) => new Uint8Array(new Uint32Array(words).buffer);
  let error = await ends((peer) => peer.raw(header(1, 0, 0)));
  t.match(error.message, /GET_FEATURES: protocol version 0/);
  error = await ends((peer) => peer.raw(header(1, 2, 0)));
  t.match(error.message, /GET_FEATURES: protocol version 2/);
  error = await ends((peer) => peer.raw(header(1, 1 | FLAG_REPLY, 0)));
  t.match(error.message, /GET_FEATURES: a reply/);
  error = await ends((peer) => peer.raw(header(5, 1, 4097)));
  t.match(error.message, /SET_MEM_TABLE: payload of 4097 bytes, more than 4096/);
  error = await ends((peer) => peer.raw(header(5, 1, 0xffff_ffff)));
  t.match(error.message, /SET_MEM_TABLE: payload of 4294967295 bytes/);
  error = await ends((peer) => peer.raw(Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')));
  t.match(error.message, /request 542393671/);
});

t.test('messages that stop in the middle', async (t) => {
  const whole = buildMessage(Request.SetFeatures, 0, buildU64(Feature.Version1));
  for (let length = 1; length < whole.length; length += 3) {
    const error = await ends((peer) => {
      peer.raw(whole.subarray(0, length), [event.fd]);
      peer.close();
    });
    t.equal(error.code, 'ERR_VDUSE_VHOST_USER_CLOSED');
    t.match(error.message, /in the middle of a message/);
  }
});

t.test('a message in single bytes, its descriptor with any of them', async (t) => {
  const bytes = buildMessage(Request.SetVringCall, 0, ringMessages.fd(0));
  for (let at = 0; at < bytes.length; at += 5) {
    const count = served.ends.length;
    const peer = Peer.to(path);
    for (let i = 0; i < bytes.length; i++) {
      peer.raw(bytes.subarray(i, i + 1), i === at ? [event.fd] : []);
    }
    t.equal(await peer.askU64(Request.GetQueueNum), 2n);
    peer.close();
    t.equal(await served.ended(count + 1), undefined);
  }
});

t.test('with protocol features: slots, configuration, and a word before the end', async (t) => {
  const protocol = { protocol: ALL };
  let error = await ends(
    (peer) => peer.send(AddMemReg, buildMemRegion(region({ guestAddress: 0x9000_0000n }))),
    protocol,
  );
  t.match(error.message, /ADD_MEM_REG: 0 file descriptors, 1 expected/);
  error = await ends((peer) => peer.send(AddMemReg, buildMemRegion(region()), [one]), protocol);
  t.match(error.message, /ADD_MEM_REG: region .* overlaps/);
  error = await ends((peer) => {
    peer.send(Request.RemMemReg, buildMemRegion(region({ size: 4096n })));
  }, protocol);
  t.match(error.message, /REM_MEM_REG: there is no region 0x100000\+0x1000/);
  error = await ends(async (peer) => {
    for (let i = 1; i <= 509; i++) {
      const at = BigInt(i) << 32n;
      const next = region({ guestAddress: at, userAddress: at, size: 4096n });
      peer.send(AddMemReg, buildMemRegion(next), [one]);
      if (i % 64 === 0) await peer.sync();
    }
  }, protocol);
  t.match(error.message, /ADD_MEM_REG: more than 509 memory regions/);
  const config = buildConfig(0, 0, new Uint8Array(4));
  error = await ends((peer) => peer.send(Request.GetConfig, config.subarray(0, 11)), protocol);
  t.match(error.message, /GET_CONFIG: payload of 11 bytes/);
  error = await ends((peer) => peer.send(Request.GetConfig, config.subarray(0, 15)), protocol);
  t.match(error.message, /GET_CONFIG: payload of 15 bytes, 16 expected/);
  error = await ends((peer) => peer.send(Request.SetConfig, config.subarray(0, 12)), protocol);
  t.match(error.message, /SET_CONFIG: payload of 12 bytes, 16 expected/);
  const huge = config.slice(0, 12);
  new DataView(huge.buffer).setUint32(4, 0xffff_ffff, true);
  error = await ends((peer) => peer.send(Request.GetConfig, huge), protocol);
  t.match(error.message, /GET_CONFIG: 4294967295 bytes/);
  let ack = 0n;
  error = await ends(async (peer) => {
    ack = await peer.tell(Request.SetVringNum, ringMessages.num(0, 5000));
  }, protocol);
  t.equal(ack, 1n, 'whoever wants an acknowledgement is told of the failure first');
});

t.test('running rings: size and base are fixed, no power of two, memory too small', async (t) => {
  const running = (then: (peer: Peer) => void) => (peer: Peer) => {
    startRing(peer, 0, event, event);
    then(peer);
  };
  let error = await ends(running((peer) => peer.send(Request.SetVringNum, ringMessages.num(0, 8))));
  t.match(error.message, /SET_VRING_NUM: queue 0: the ring is started/);
  error = await ends(running((peer) => peer.send(Request.SetVringBase, ringMessages.base(0, 1))));
  t.match(error.message, /SET_VRING_BASE: queue 0: the ring is started/);
  error = await ends((peer) => {
    peer.send(Request.SetVringNum, ringMessages.num(0, 12));
    peer.send(SetVringAddr, ringMessages.addr(0));
    peer.send(Request.SetVringKick, ringMessages.fd(0), [event.fd]);
  });
  t.match(error.message, /SET_VRING_KICK: queue 0: 12 entries, no power of two/);
  // Its last bytes are beyond the region.
  error = await ends((peer) => {
    peer.send(Request.SetVringNum, ringMessages.num(0, 1024));
    peer.send(SetVringAddr, addresses({ descriptor: END - 0x1000n }));
  });
  t.match(error.message, /SET_VRING_ADDR: queue 0: descriptors at .*: not in the memory/);
});

t.test('rings before memory', async (t) => {
  const before = served.ends.length;
  const peer = Peer.to(path);
  peer.send(Request.SetFeatures, buildU64(Feature.Version1));
  peer.send(Request.SetVringNum, ringMessages.num(0));
  peer.send(SetVringAddr, ringMessages.addr(0));
  const error = await served.ended(before + 1);
  t.match(error?.message, /SET_VRING_ADDR: queue 0: descriptors at .*: not in the memory/);
  peer.close();
});

t.test('memory that is cut short under the ring', async (t) => {
  const before = served.ends.length;
  const peer = Peer.to(path);
  const small = openSync(`${folder}plain`, 'r+');
  peer.send(Request.SetFeatures, buildU64(Feature.Version1));
  peer.send(SetMemTable, table(region()), [small]);
  await peer.sync();
  writeFileSync(`${folder}plain`, '');
  startRing(peer, 0, event, event);
  // Zeroes are found there: nothing to do. The process goes on.
  t.equal(await peer.base(0), 0);
  peer.close();
  closeSync(small);
  await served.ended(before + 1);
  writeFileSync(`${folder}plain`, new Uint8Array(MEMORY_BYTES));
  await sane();
  t.equal(await served.ended(before + 2), undefined);
});

t.test('a front end that does not read its replies', async (t) => {
  const count = served.ends.length;
  const error = await ends(async (peer) => {
    const ask = buildMessage(Request.GetFeatures, 0, NO_PAYLOAD);
    while (served.ends.length === count) {
      try {
        native.sendMessage(peer.socket.fd, ask, [], 0);
      } catch {
        // The socket is full: the server's turn.
        await sleep(1);
      }
    }
  });
  t.equal(error.code, 'ERR_VDUSE_VHOST_USER_CLOSED');
  t.match(error.message, /does not take the reply/);
});

t.test('a flood of messages leaves the process time for others', async (t) => {
  const count = served.ends.length;
  const peer = Peer.to(path);
  const bytes = Buffer.concat(
    Array.from({ length: 200 }, () => buildMessage(Request.SetOwner, 0, NO_PAYLOAD)),
  );
  let turns = 0;
  const counting = setInterval(() => turns++, 1);
  for (let i = 0; i < 20; i++) peer.raw(bytes);
  await peer.sync();
  clearInterval(counting);
  t.ok(turns > 0, `${turns} turns of a timer meanwhile`);
  peer.close();
  await served.ended(count + 1);
});

t.test('whatever is sent, nothing crashes, hangs or leaks', async (t) => {
  const someRequest = fc.oneof(fc.integer({ min: 0, max: 45 }), fc.nat(0xffff));
  const someWords = fc.array(
    fc.oneof(
      fc.constantFrom(0n, 1n, 2n, 16n, 0x100n, GUEST_BASE, USER_BASE, BigInt(MEMORY_BYTES), END),
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    ),
    { maxLength: 9 },
  );
  const somePayload = fc.oneof(
    someWords.map((words) => new Uint8Array(new BigUint64Array(words).buffer)),
    fc.uint8Array({ maxLength: 80 }),
    fc.constantFrom(
      ringMessages.num(0),
      ringMessages.addr(0),
      ringMessages.fd(1),
      table(region()),
      buildMemRegion(region()),
      buildU64(PROTOCOL_FEATURES | Feature.Version1),
      buildU64(ALL),
      buildVringState({ index: 1, num: 1 }),
      buildConfig(0, 0, new Uint8Array(8)),
      NO_PAYLOAD,
    ),
  );
  const someFds = fc.array(fc.constantFrom(event.fd, memory.fd, readOnly, directory), {
    maxLength: 3,
  });
  const someMessage = fc.record({
    request: someRequest,
    flags: fc.constantFrom(0, 0, FLAG_NEED_REPLY, FLAG_REPLY),
    payload: somePayload,
    fds: someFds,
  });
  const before = openFds();
  await fc.assert(
    fc.asyncProperty(
      fc.array(someMessage, { maxLength: 12 }),
      fc.nat(2),
      async (messages, start) => {
        const count = served.ends.length;
        const peer = Peer.to(path);
        const guest = start > 0 ? handshake(peer, start > 1 ? ALL : 0n) : undefined;
        try {
          for (const { request, flags, payload, fds } of messages) {
            peer.send(request, payload, fds, flags);
          }
        } catch {
          // Thrown out already.
        }
        peer.close();
        guest?.close();
        const error = await served.ended(count + 1);
        return error === undefined || error instanceof VhostUserError;
      },
    ),
    { numRuns: 400 },
  );
  const count = served.ends.length;
  await sane();
  t.equal(await served.ended(count + 1), undefined);
  t.equal(openFds(), before);
  t.same(served.notes, []);
});
