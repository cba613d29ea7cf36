import { readdirSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { type Mapping, type Memory, native } from '../../lib/native/index.ts';

/** The addon the tests load, for child processes and workers that load it themselves. */
export const ADDON =
  process.env['VDUSE_ADDON'] ??
  fileURLToPath(new URL('../../build/Release/vduse.node', import.meta.url));

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Collects garbage until `done`, letting finalizers run; false if it never is. */
export async function collectUntil(done: () => boolean, rounds = 50): Promise<boolean> {
  for (let round = 0; round < rounds; round++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
    if (done()) return true;
  }
  return false;
}

/** A mapping as I/O vectors name it. */
export function memoryOf(mapping: Mapping): Memory {
  return { u8: new Uint8Array(mapping.buffer), address: mapping.address };
}

/** How many descriptors this process has open. */
export function openFds(): number {
  return readdirSync('/proc/self/fd').length;
}

/** The highest count of an eventfd. */
const HIGHEST = BigUint64Array.of(2n ** 64n - 2n);

/** Does what a hostile peer can to an eventfd it shares: after that a write to it waits. */
export function fillEventfd(fd: number): void {
  native.setNonblocking(fd, false);
  writeSync(fd, HIGHEST);
}

/** What is thrown by `body`, or by the promise it returns. */
export async function thrownBy(body: () => unknown): Promise<unknown> {
  try {
    await body();
  } catch (error) {
    return error;
  }
  return undefined;
}

/** Runs CommonJS `code` in a worker with `native` loaded; resolves with its first message. */
export function inWorker(
  code: string,
  data: unknown = {},
): { worker: Worker; message: Promise<unknown> } {
  const prelude = `
    const { parentPort, workerData } = require('node:worker_threads');
    const native = require(${JSON.stringify(ADDON)});
  `;
  const worker = new Worker(prelude + code, { eval: true, workerData: data });
  const message = new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  return { worker, message };
}
