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

/** Durable writes of one block, one after the other, for so many ms; how many a second. */
export async function writesPerSecond({ exchange }, ms) {
  const data = new Uint8Array(256);
  const counter = await counterNow(exchange);
  const begin = performance.now();
  let done = 0;
  for (; performance.now() - begin < ms; done++) {
    data[0] = done;
    const request = makeWrite(KEY, counter + done, (done * 16) % BLOCKS, data);
    needOk(await exchange(request, 1), 1);
  }
  return (done * 1000) / (performance.now() - begin);
}

/**
 * The same from a driver that never sleeps: what the device can do. It blocks the process. The queue
 * has nothing else in flight.
 */
export async function polledWritesPerSecond({ queue, exchange }, ms) {
  const { driver, buffers, kick } = queue;
  const data = new Uint8Array(256);
  const request = { address: buffers.start, length: 2 * FRAME_BYTES };
  const reply = { address: buffers.start + request.length, length: FRAME_BYTES };
  const [readable, writable] = [[request], [reply]];
  const answer = buffers.u8.subarray(request.length, request.length + reply.length);
  const counter = await counterNow(exchange);
  driver.disableSignals();
  const begin = performance.now();
  let done = 0;
  for (; performance.now() - begin < ms; done++) {
    data[0] = done;
    buffers.u8.set(makeWrite(KEY, counter + done, (done * 16) % BLOCKS, data));
    driver.add(readable, writable);
    if (driver.needsKick()) native.eventfdSignal(kick.fd);
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
