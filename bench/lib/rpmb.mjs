// What the RPMB benchmarks share: a client without checks of its own, since the device is measured.
import { VhostUserFrontend } from '../../dist/frontend/index.js';
import { native } from '../../dist/native/index.js';
import {
  createState,
  FRAME_BYTES,
  makeWrite,
  putFrame,
  RequestType,
} from '../../dist/rpmb/index.js';

export const KEY = Uint8Array.from({ length: 32 }, (_, i) => i);
export const CAPACITY = 1 << 20;
export const BLOCKS = CAPACITY / 256;

export function makeState(path, options = {}) {
  createState(path, { size: CAPACITY, key: KEY, ...options }, native);
}

/** Connect to a socket; `exchange` as the library's. */
export async function connect(path) {
  const frontend = await VhostUserFrontend.connect({ path });
  const [queue] = await frontend.start({});
  const exchange = async (request, frames) => {
    const { written, data } = await queue.submit([request], [frames * FRAME_BYTES]);
    return data[0].subarray(0, written);
  };
  return { queue, exchange, close: () => frontend.close() };
}

/** No disk here makes so many writes durable in a ms; where one does, a run is shorter. */
const MOST_PER_MS = 12;

/** After so many, at the latest, both ends are compiled. */
export const WARM_WRITES = 5000;

/** The back end is gone. */
const PATIENCE_US = 10_000_000;

/** `count` writes of one block, made ahead: the device is measured, not what makes its frames. */
async function makeWrites({ exchange }, count) {
  const counter = await counterNow(exchange);
  const data = new Uint8Array(256);
  return Array.from({ length: count }, (_, n) => {
    data[0] = n;
    return makeWrite(KEY, counter + n, (n * 16) % BLOCKS, data);
  });
}

/** Durable writes of one block, one after the other, for so many ms; how many a second. */
export async function writesPerSecond(device, ms) {
  const writes = await makeWrites(device, ms * MOST_PER_MS);
  const begin = performance.now();
  let done = 0;
  for (; done < writes.length && performance.now() - begin < ms; done++) {
    needOk(await device.exchange(writes[done], 1), 1);
  }
  return (done * 1000) / (performance.now() - begin);
}

/**
 * The same from a driver that sleeps until it is signalled, as a kernel's does, or one that never
 * sleeps. It blocks the process. The queue has nothing else in flight.
 */
export async function drivenWritesPerSecond(
  device,
  ms,
  { polls = false, most = ms * MOST_PER_MS } = {},
) {
  const { driver, buffers, kick, call } = device.queue;
  const request = { address: buffers.start, length: 2 * FRAME_BYTES };
  const reply = { address: buffers.start + request.length, length: FRAME_BYTES };
  const [readable, writable] = [[request], [reply]];
  const answer = buffers.u8.subarray(request.length, request.length + reply.length);
  const waited = Int32Array.of(call.fd, 0);
  const signals = Int32Array.of(kick.fd, -1, 0);
  const writes = await makeWrites(device, most);
  driver.disableSignals();
  const begin = performance.now();
  let done = 0;
  for (; done < writes.length && performance.now() - begin < ms; done++) {
    buffers.u8.set(writes[done]);
    driver.add(readable, writable);
    const kicks = driver.needsKick() ? 1 : 0;
    if (polls || driver.enableSignals()) {
      if (kicks > 0) native.eventfdSignal(kick.fd);
    } else {
      if (native.signalAndPoll(waited, 1, PATIENCE_US, signals, kicks) === 0) {
        throw new Error('the device does not answer');
      }
      native.eventfdRead(call.fd);
    }
    while (!driver.next());
    needOk(answer, 1);
  }
  const rate = (done * 1000) / (performance.now() - begin);
  driver.enableSignals();
  return rate;
}

/** Frames read a second, `blocks` a request, `depth` requests in flight. */
export async function framesPerSecond({ exchange }, ms, blocks, depth) {
  const begin = performance.now();
  let frames = 0;
  const reader = async (from) => {
    for (let n = from; performance.now() - begin < ms; n += depth) {
      const request = new Uint8Array(FRAME_BYTES);
      const address = (n * blocks) % BLOCKS;
      putFrame(request, 0, { type: RequestType.DataRead, blockCount: blocks, address });
      needOk(await exchange(request, blocks), blocks);
      frames += blocks;
    }
  };
  await Promise.all(Array.from({ length: depth }, (_, i) => reader(i)));
  return (frames * 1000) / (performance.now() - begin);
}

async function counterNow(exchange) {
  const request = new Uint8Array(FRAME_BYTES);
  putFrame(request, 0, { type: RequestType.GetWriteCounter, blockCount: 1 });
  const reply = await exchange(request, 1);
  needOk(reply, 1);
  return new DataView(reply.buffer, reply.byteOffset).getUint32(500);
}

function needOk(reply, frames) {
  if (reply.length !== frames * FRAME_BYTES || reply[508] !== 0 || reply[509] !== 0) {
    throw new Error(`the device answered ${reply.length} bytes, result ${reply[509]}`);
  }
}
