// An engine and its driver on one thread, to count instructions: `engine-alone.mjs read|write DEPTH ROUNDS`. Each
// round serves a batch of DEPTH requests of 4 KiB, header, data and status in an indirect table, by copies from
// and to a mapped file.
import { MessageChannel } from 'node:worker_threads';
import { openBlockModel } from '../../dist/daemon/block-model.js';
import { native } from '../../dist/native/index.js';
import { COUNTERS, chooseEngine, ReactorLoop } from '../../dist/reactor/index.js';
import { mapFile } from '../../dist/store/index.js';
import { Access, GuestMemory, SplitDriver } from '../../dist/virtio/index.js';

const [, , op, depthText, roundsText] = process.argv;
const depth = Number(depthText);
const rounds = Number(roundsText);

const DISK = 2 ** 26;
const BLOCK = 4096;
const SECTORS = BLOCK / 512;
const QUEUE_SIZE = 256;
const RING = 2 ** 20;
/** The feature bit of FLUSH: without it every write is synced. */
const FLUSH = 1n << 9n;

const disk = native.memfd('disk', DISK);
const memory = native.memfd('memory', RING + QUEUE_SIZE * BLOCK);
const { buffer, address } = native.mmap(memory.fd, RING + QUEUE_SIZE * BLOCK, 0, true);
const region = {
  start: 0,
  length: buffer.byteLength,
  access: Access.ReadWrite,
  address,
  u8: new Uint8Array(buffer),
  u16: new Uint16Array(buffer),
  u32: new Uint32Array(buffer),
};
const guest = new GuestMemory();
guest.add(region);
const driver = new SplitDriver(region, { size: QUEUE_SIZE, indirect: true, eventIndex: true });
const slots = Array.from({ length: depth }, (_, i) => {
  const head = { address: driver.allocate(16), length: 16 };
  const data = { address: RING + i * BLOCK, length: BLOCK };
  const status = { address: driver.allocate(1), length: 1 };
  region.u32[head.address / 4] = op === 'write' ? 1 : 0;
  return {
    sector: head.address / 4 + 2,
    readable: op === 'write' ? [head, data] : [head],
    writable: op === 'write' ? [status] : [data, status],
  };
});

const options = { pollUs: 1, policy: 'auto', engine: 'auto', rehearse: false };
const { engine } = chooseEngine(native, options);
// Collected, these would close and unmap what is in use.
const held = {
  map: mapFile(disk.fd, DISK, false, false),
  fds: [0, 0, 0].map(() => native.eventfd(0)),
};
const [orders, kick, call] = held.fds.map(({ fd }) => fd);
const { port1, port2 } = new MessageChannel();
const source = { memory: guest, poisoned: () => false, replace: () => {}, release: () => {} };
const tables = { models: { block: openBlockModel }, memories: { guest: () => source } };
const loop = new ReactorLoop(native, engine, tables, port2, orders, options);
function order(what) {
  port1.postMessage({ id: 0, order: what });
  native.eventfdSignal(orders);
  loop.takeOrders();
}
const limits = { capacity: DISK, blockSize: 512, physicalBlockSize: BLOCK, readOnly: false };
order({
  type: 'add-device',
  device: {
    id: 1,
    model: 'block',
    modelOptions: {
      block: {
        ...limits,
        queues: 1,
        queueSize: 256,
        serial: '',
        discard: false,
        switchableCache: false,
      },
      target: {
        fd: disk.fd,
        info: { name: 'memory', ...limits, blockSize: 1, memoryAlignment: 1, discard: false },
        direct: false,
        mayBlock: false,
        syncsInPlace: true,
        allocationUnit: 1,
        syncFailure: new Int32Array(1),
        copies: held.map.copies,
      },
    },
    memory: 'guest',
    memoryOptions: undefined,
    queues: 1,
    counters: new SharedArrayBuffer(COUNTERS * 8),
  },
});
order({
  type: 'start-queue',
  device: 1,
  queue: {
    index: 0,
    layout: driver.layout,
    kickFd: kick,
    signal: { fd: call, index: -1 },
    features: FLUSH,
    signalOnce: false,
  },
});

const indirect = { indirect: true };
let block = 0;
/** A batch, from the kick to its last answer. The blocks come in an order that no prefetcher knows. */
function serve() {
  for (const slot of slots) {
    block = (block * 5 + 1) % (DISK / BLOCK);
    region.u32[slot.sector] = block * SECTORS;
    driver.add(slot.readable, slot.writable, indirect);
  }
  driver.enableSignals();
  native.eventfdSignal(kick);
  let answers = 0;
  while (answers < depth) {
    loop.step();
    while (driver.next()) answers++;
  }
  native.eventfdRead(call);
}
for (let i = 0; i < rounds; i++) serve();
held.map.map.unmap();
for (const fd of [...held.fds, disk, memory]) fd.close();
process.exit(0);
