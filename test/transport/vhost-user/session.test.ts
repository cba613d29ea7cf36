import t, { type Test } from 'tap';
import { native, type OwnedFd } from '../../../lib/native/index.ts';
import { Feature, SplitDriver } from '../../../lib/virtio/index.ts';
import {
  buildConfig,
  buildMemRegion,
  buildMemTable,
  buildU64,
  buildVringAddresses,
  buildVringState,
  PROTOCOL_FEATURES,
  ProtocolFeature,
  parseConfig,
  Request,
} from '../../../lib/virtio/vhost-user-messages.ts';
import { fillEventfd } from '../../native/helpers.ts';
import {
  CONFIG,
  FEATURES,
  handshake,
  MEMORY_BYTES,
  openFds,
  Peer,
  region,
  ringMessages,
  Served,
  startRing,
  ToyBackend,
  USER_BASE,
  until,
} from './harness.ts';

const ALL =
  ProtocolFeature.Mq |
  ProtocolFeature.ReplyAck |
  ProtocolFeature.Config |
  ProtocolFeature.ResetDevice |
  ProtocolFeature.ConfigureMemSlots;

/** A connection to a toy device and all that must be gone after it. */
function connect(t: Test, backend = new ToyBackend()) {
  const before = openFds();
  const [mine, theirs] = native.unixPair();
  const served = new Served({ fd: theirs.release() }, backend);
  const peer = new Peer(mine);
  const fds: OwnedFd[] = [];
  const event = () => {
    const fd = native.eventfd(0);
    fds.push(fd);
    return fd;
  };
  const finish = async () => {
    peer.close();
    await served.server.ended;
    for (const fd of fds) fd.close();
    t.equal(openFds(), before, 'no descriptor is left');
    t.same(backend.pieces, [], 'no memory is left');
    t.equal(backend.running.size, 0, 'no queue is left');
  };
  return { served, backend, peer, fds, event, finish };
}

/** The memory the front end shares, mapped at this end, as a driver needs it. */
function driverMemory(memory: OwnedFd, start: number, skip = 0) {
  const mapping = native.mmap(memory.fd, MEMORY_BYTES, 0, true);
  const length = MEMORY_BYTES - skip;
  return {
    mapping,
    view: {
      start,
      length,
      u8: new Uint8Array(mapping.buffer, skip, length),
      u16: new Uint16Array(mapping.buffer, skip, length / 2),
      u32: new Uint32Array(mapping.buffer, skip, length / 4),
    },
  };
}

t.test('QEMU: features, configuration, memory table, rings, a request, stop', async (t) => {
  const { served, backend, peer, event, fds, finish } = connect(t);
  t.equal(await peer.askU64(Request.GetFeatures), FEATURES | PROTOCOL_FEATURES);
  t.equal(await peer.askU64(Request.GetProtocolFeatures), ALL);
  peer.send(Request.SetProtocolFeatures, buildU64(ALL));
  t.equal(await peer.askU64(Request.GetQueueNum), 2n);
  t.equal(await peer.askU64(Request.GetMaxMemSlots), 509n);
  peer.send(Request.SetOwner);
  const config = parseConfig(
    Request.GetConfig,
    await peer.ask(Request.GetConfig, buildConfig(0, 0, new Uint8Array(8))),
  );
  t.same(Uint8Array.from(config.bytes), CONFIG.slice(0, 8));
  // The call descriptor comes before memory, and again later.
  t.equal(await peer.tell(Request.SetVringCall, ringMessages.fd(0), [event().fd]), 0n);
  t.equal(await peer.tell(Request.SetVringErr, ringMessages.fd(0), [event().fd]), 0n);
  const accepted = Feature.Version1 | Feature.EventIndex | PROTOCOL_FEATURES;
  t.equal(await peer.tell(Request.SetFeatures, buildU64(accepted)), 0n);
  const memory = native.memfd('guest', MEMORY_BYTES);
  fds.push(memory);
  t.equal(await peer.tell(Request.SetMemTable, buildMemTable([region()]), [memory.fd]), 0n);

  const { mapping, view } = driverMemory(memory, 0x100000);
  const driver = new SplitDriver(view, { size: 16, eventIndex: true });
  const user = (address: number) => USER_BASE + BigInt(address - 0x100000);
  const kick = event();
  const call = event();
  t.equal(await peer.tell(Request.SetVringNum, ringMessages.num(0)), 0n);
  t.equal(await peer.tell(Request.SetVringBase, ringMessages.base(0)), 0n);
  const addresses = {
    index: 0,
    flags: 0,
    descriptor: user(driver.layout.desc),
    available: user(driver.layout.driver),
    used: user(driver.layout.device),
  };
  t.equal(await peer.tell(Request.SetVringAddr, buildVringAddresses(addresses)), 0n);
  t.equal(await peer.tell(Request.SetVringKick, ringMessages.fd(0), [kick.fd]), 0n);
  t.equal(await peer.tell(Request.SetVringCall, ringMessages.fd(0), [call.fd]), 0n);
  t.equal(backend.running.size, 0, 'disabled until it is enabled');
  t.equal(await peer.tell(Request.SetVringEnable, ringMessages.enable(0, 1)), 0n);
  t.same(backend.log, ['memory 1', 'start 0 at 0']);

  const request = { address: driver.allocate(16), length: 16 };
  const answer = { address: driver.allocate(16), length: 16 };
  view.u8.set(CONFIG, request.address - view.start);
  driver.add([request], [answer]);
  t.ok(driver.needsKick());
  native.eventfdSignal(kick.fd);
  await until(() => native.eventfdRead(call.fd) > 0);
  t.same(driver.poll(), [{ id: 0, length: 16 }]);
  const at = answer.address - view.start;
  t.same(view.u8.slice(at, at + 16), CONFIG);

  t.equal(await peer.tell(Request.SetVringEnable, ringMessages.enable(0, 0)), 0n);
  t.equal(backend.running.size, 0);
  t.equal(await peer.base(0), 1);
  mapping.unmap();
  await finish();
  t.same(served.ends, [undefined]);
});

t.test(
  'libblkio: regions one by one, everything acknowledged, sizes no page multiple',
  async (t) => {
    const { backend, peer, event, fds, finish } = connect(t);
    peer.send(Request.SetOwner);
    peer.send(Request.SetFeatures, buildU64(Feature.Version1 | PROTOCOL_FEATURES));
    peer.send(Request.SetProtocolFeatures, buildU64(ALL));
    const memory = native.memfd('rings', 0x3210);
    const pool = native.memfd('pool', 0x21200);
    fds.push(memory, pool);
    const rings = region({ size: 0x3210n, guestAddress: USER_BASE });
    const buffers = region({
      guestAddress: 0x7fff_0000_0000n,
      userAddress: 0x7fff_0000_0000n,
      size: 0x21200n,
    });
    t.equal(await peer.tell(Request.AddMemReg, buildMemRegion(rings), [memory.fd]), 0n);
    startRing(peer, 1, event(), event());
    t.equal(await peer.tell(Request.SetVringEnable, ringMessages.enable(1, 1)), 0n);
    t.equal(await peer.tell(Request.AddMemReg, buildMemRegion(buffers), [pool.fd]), 0n);
    const first = backend.pieces[0]!.id;
    // A descriptor with REM_MEM_REG is tolerated, and closed.
    t.equal(await peer.tell(Request.RemMemReg, buildMemRegion(buffers), [pool.fd]), 0n);
    t.equal(backend.pieces[0]!.id, first, 'what stays is the same piece');
    t.same(
      backend.log,
      ['memory 1', 'start 1 at 0', 'memory 2', 'memory 1'],
      'a running ring goes on while memory comes and goes',
    );
    await finish();
  },
);

t.test('a ring whose memory is taken out stops, and goes on when it is back', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  const memory = handshake(peer, ALL);
  fds.push(memory);
  startRing(peer, 0, event(), event());
  peer.send(Request.SetVringEnable, ringMessages.enable(0, 1));
  t.equal(await peer.tell(Request.RemMemReg, buildMemRegion(region())), 0n);
  t.same(backend.log, ['memory 1', 'start 0 at 0', 'stop 0 at 0', 'memory 0']);
  // The same memory for the front end, elsewhere for the guest.
  const moved = region({ guestAddress: 0x4000_0000n });
  t.equal(await peer.tell(Request.AddMemReg, buildMemRegion(moved), [memory.fd]), 0n);
  t.same(backend.log.slice(4), ['memory 1', 'start 0 at 0']);
  t.equal(backend.running.get(0)!.start.layout.desc, 0x4000_0000);
  await finish();
});

t.test('a whole new table under a running ring', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer));
  startRing(peer, 0, event(), event());
  const larger = native.memfd('larger', 2 * MEMORY_BYTES);
  fds.push(larger);
  const table = [region({ size: BigInt(2 * MEMORY_BYTES) })];
  peer.send(Request.SetMemTable, buildMemTable(table), [larger.fd]);
  await peer.sync();
  t.same(backend.log, ['memory 1', 'start 0 at 0', 'memory 1'], 'it stays where it is');
  t.equal(backend.pieces[0]!.length, 2 * MEMORY_BYTES);
  await finish();
});

t.test('without protocol features a ring is enabled from the start', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer));
  const kick = event();
  startRing(peer, 0, kick, event());
  await peer.sync();
  t.same(backend.log, ['memory 1', 'start 0 at 0']);
  t.equal(await peer.base(0), 0);
  t.equal(await peer.base(0), 0, 'and once more, stopped');
  // It starts again with another kick descriptor, where the front end wants it.
  peer.send(Request.SetVringBase, ringMessages.base(0, 7));
  peer.send(Request.SetVringKick, ringMessages.fd(0), [kick.fd]);
  await peer.sync();
  t.same(backend.log.slice(2), ['stop 0 at 0', 'start 0 at 7']);
  await finish();
});

t.test('the order of enabling, kick and features does not matter', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer, ALL));
  peer.send(Request.SetVringEnable, ringMessages.enable(0, 1));
  startRing(peer, 0, event(), event());
  await peer.sync();
  t.same(backend.log, ['memory 1', 'start 0 at 0']);
  const features = Feature.Version1 | Feature.EventIndex | PROTOCOL_FEATURES;
  peer.send(Request.SetFeatures, buildU64(features));
  await peer.sync();
  t.same(backend.log.slice(2), ['stop 0 at 0', 'start 0 at 0'], 'other features, another ring');
  t.equal(backend.running.get(0)!.start.features, features & ~PROTOCOL_FEATURES);
  t.equal(backend.running.get(0)!.start.layout.eventIndex, true);
  peer.send(Request.SetFeatures, buildU64(features));
  peer.send(Request.SetVringEnable, ringMessages.enable(0, 1));
  peer.send(Request.SetVringAddr, ringMessages.addr(0));
  await peer.sync();
  t.equal(backend.log.length, 4, 'the same again changes nothing');
  peer.send(Request.SetVringAddr, ringMessages.addr(0, 0x2000));
  await peer.sync();
  t.same(backend.log.slice(4), ['stop 0 at 0', 'start 0 at 0'], 'other addresses do');
  await finish();
});

t.test('a ring is drained before GET_VRING_BASE is answered', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer));
  startRing(peer, 0, event(), event());
  await peer.sync();
  let finishIo = () => {};
  backend.drained = new Promise((resolve) => {
    finishIo = resolve;
  });
  let answered = false;
  const base = peer.base(0).then((num) => {
    answered = true;
    return num;
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  t.notOk(answered, 'I/O is in flight');
  finishIo();
  t.equal(await base, 0);
  await finish();
});

t.test('rings without kick or call descriptor', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer));
  peer.send(Request.SetVringNum, ringMessages.num(0));
  peer.send(Request.SetVringAddr, ringMessages.addr(0));
  peer.send(Request.SetVringCall, ringMessages.fd(0, false));
  peer.send(Request.SetVringErr, ringMessages.fd(0, false));
  peer.send(Request.SetVringKick, ringMessages.fd(0, false));
  await peer.sync();
  const { start } = backend.running.get(0)!;
  t.equal(start.kickFd, -1);
  t.equal(start.callFd, -1);
  // Call and error descriptors may be given, changed and taken away while it runs.
  peer.send(Request.SetVringCall, ringMessages.fd(0), [event().fd]);
  peer.send(Request.SetVringCall, ringMessages.fd(0), [event().fd]);
  peer.send(Request.SetVringCall, ringMessages.fd(0, false));
  const broken = event();
  peer.send(Request.SetVringErr, ringMessages.fd(0), [broken.fd]);
  await peer.sync();
  t.same(backend.log.slice(2), ['call 0 fd', 'call 0 fd', 'call 0 none']);
  backend.onQueueBroken?.(0);
  t.equal(
    native.eventfdRead(broken.fd),
    1,
    'a broken ring is told of through its error descriptor',
  );
  fillEventfd(broken.fd);
  t.doesNotThrow(() => backend.onQueueBroken?.(0), 'the front end made it full and blocking');
  await finish();
});

t.test('packed rings: any size, both positions', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer));
  peer.send(Request.SetFeatures, buildU64(Feature.Version1 | Feature.RingPacked));
  peer.send(Request.SetVringNum, ringMessages.num(0, 10));
  peer.send(Request.SetVringAddr, ringMessages.addr(0));
  peer.send(Request.SetVringKick, ringMessages.fd(0), [event().fd]);
  await peer.sync();
  const { layout } = backend.running.get(0)!.start;
  t.same(layout.position, { avail: 0x8000, used: 0x8000 });
  t.equal(layout.packed, true);
  t.equal(await peer.base(0), 0x8000_8000);
  peer.send(Request.SetVringBase, ringMessages.base(0, 0x8003_0002));
  peer.send(Request.SetVringKick, ringMessages.fd(0), [event().fd]);
  await peer.sync();
  t.same(backend.running.get(0)!.start.layout.position, { avail: 2, used: 0x8003 });
  t.equal(await peer.base(0), 0x8003_0002);
  await finish();
});

t.test('rings of 1024 entries, whatever the device prefers', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  fds.push(handshake(peer));
  peer.send(Request.SetVringNum, ringMessages.num(0, 1024));
  const addresses = { index: 0, flags: 0, descriptor: USER_BASE, used: 0n, available: 0n };
  addresses.available = USER_BASE + 0x4000n;
  addresses.used = USER_BASE + 0x5000n;
  peer.send(Request.SetVringAddr, buildVringAddresses(addresses));
  peer.send(Request.SetVringKick, ringMessages.fd(0), [event().fd]);
  await peer.sync();
  t.equal(backend.running.get(0)!.start.layout.size, 1024);
  await finish();
});

t.test('configuration space: both offsets, beyond its end, writes', async (t) => {
  const { backend, peer, fds, finish } = connect(t);
  fds.push(handshake(peer, ALL));
  const read = async (payload: Uint8Array) =>
    parseConfig(Request.GetConfig, await peer.ask(Request.GetConfig, payload));
  for (const offset of [0x100, 0x104]) {
    const { bytes, ...rest } = await read(buildConfig(offset, 0, new Uint8Array(4)));
    t.same(rest, { offset, size: 4, flags: 0 });
    t.same(Uint8Array.from(bytes), CONFIG.slice(offset - 0x100, offset - 0x100 + 4));
  }
  const long = await read(buildConfig(8, 0, new Uint8Array(256)));
  t.equal(long.bytes.length, 256, 'as many bytes as were asked for');
  t.same(Uint8Array.from(long.bytes.subarray(0, 9)), Uint8Array.of(...CONFIG.slice(8), 0));
  const headerAlone = buildConfig(0, 0, new Uint8Array(6)).subarray(0, 12);
  t.equal((await read(headerAlone)).bytes.length, 6);
  t.equal((await read(buildConfig(0, 0, new Uint8Array(0)))).bytes.length, 0);

  t.equal(await peer.tell(Request.SetConfig, buildConfig(2, 0, Uint8Array.of(99))), 0n);
  t.equal(backend.config[2], 99);
  t.equal(await peer.tell(Request.SetConfig, buildConfig(0x103, 1, Uint8Array.of(98))), 0n);
  t.equal(backend.config[3], 98);
  t.equal(
    await peer.tell(Request.SetConfig, buildConfig(15, 0, new Uint8Array(4))),
    1n,
    'refused, and the connection goes on',
  );
  t.equal(await peer.tell(Request.ResetDevice), 0n);
  t.same(backend.config, CONFIG);
  await finish();
});

t.test('RESET_DEVICE and RESET_OWNER stop all rings and keep the memory', async (t) => {
  for (const request of [Request.ResetDevice, Request.ResetOwner]) {
    const { backend, peer, event, fds, finish } = connect(t);
    fds.push(handshake(peer, ALL));
    const kick = event();
    for (const index of [0, 1]) {
      startRing(peer, index, kick, event());
      peer.send(Request.SetVringEnable, ringMessages.enable(index, 1));
    }
    await peer.sync();
    t.equal(backend.running.size, 2);
    t.equal(await peer.tell(request), 0n);
    t.equal(backend.running.size, 0);
    t.equal(backend.pieces.length, 1);
    // And from the beginning, its call descriptor kept.
    peer.send(Request.SetVringNum, ringMessages.num(0));
    peer.send(Request.SetVringAddr, ringMessages.addr(0));
    peer.send(Request.SetVringKick, ringMessages.fd(0), [kick.fd]);
    await peer.sync();
    t.equal(backend.running.size, 0, 'disabled');
    t.equal(await peer.tell(Request.SetVringEnable, ringMessages.enable(0, 1)), 0n);
    t.not(backend.running.get(0)!.start.callFd, -1);
    await finish();
  }
});

t.test('guest memory over 4 GiB: pieces of at most 4 GiB', async (t) => {
  const { backend, peer, event, fds, finish } = connect(t);
  peer.send(Request.SetFeatures, buildU64(Feature.Version1));
  const memory = native.memfd('big', 9 * 2 ** 30);
  fds.push(memory);
  // As a q35 machine has it: 2 GiB below the hole, the rest from 4 GiB on.
  const low = region({ guestAddress: 0n, size: 2n ** 31n });
  const high = region({
    guestAddress: 2n ** 32n,
    size: 7n * 2n ** 30n,
    userAddress: USER_BASE + 2n ** 31n,
    mmapOffset: 2n ** 31n,
  });
  peer.send(Request.SetMemTable, buildMemTable([low, high]), [memory.fd, memory.fd]);
  // Its rings are in the last piece.
  const far = USER_BASE + 8n * 2n ** 30n;
  peer.send(Request.SetVringNum, ringMessages.num(0));
  const addresses = { index: 0, flags: 0, descriptor: far, available: 0n, used: 0n };
  addresses.available = far + 0x400n;
  addresses.used = far + 0x800n;
  peer.send(Request.SetVringAddr, buildVringAddresses(addresses));
  peer.send(Request.SetVringKick, ringMessages.fd(0), [event().fd]);
  await peer.sync();
  t.same(
    backend.pieces.map(({ guestAddress, length, mapOffset, skip }) => [
      guestAddress,
      length,
      mapOffset,
      skip,
    ]),
    [
      [0, 2 ** 31, 0, 0],
      [2 ** 32, 2 ** 32, 2 ** 31, 0],
      [2 ** 33, 3 * 2 ** 30, 6 * 2 ** 30, 0],
    ],
  );
  t.equal(backend.running.get(0)!.start.layout.desc, 2 ** 32 + 6 * 2 ** 30);
  const { memory: guest } = backend.source;
  t.equal(guest.find(2 ** 33 + 5)?.start, 2 ** 33);
  t.equal(guest.find(3 * 2 ** 30), undefined, 'the hole');
  await finish();
});

t.test('two user addresses for the same bytes are no contradiction', async (t) => {
  const { peer, served, fds, finish } = connect(t);
  fds.push(handshake(peer, ALL));
  const alias = region({ guestAddress: 0x9000_0000n });
  t.equal(await peer.tell(Request.AddMemReg, buildMemRegion(alias), [fds[0]!.fd]), 0n);
  await finish();
  t.same(served.ends, [undefined]);
});

t.test('what the engine refuses ends the connection, and is named', async (t) => {
  for (const name of ['setMemory', 'startQueue', 'stopQueue']) {
    const { peer, backend, event, served, fds, finish } = connect(t);
    if (name === 'setMemory') backend.failing = name;
    fds.push(handshake(peer));
    if (name === 'startQueue') backend.failing = name;
    if (name !== 'setMemory') startRing(peer, 0, event(), event());
    if (name === 'stopQueue') {
      await peer.sync();
      backend.failing = name;
      peer.send(Request.GetVringBase, buildVringState({ index: 0, num: 0 }));
    }
    await served.ended(1);
    t.match(served.ends[0]?.message, `${name} cannot be done`);
    await finish();
  }
});
