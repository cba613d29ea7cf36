import type { PooledDevice } from '../../reactor/index.ts';
import type { QueuePosition } from '../../virtio/index.ts';
import type { VhostBackend, VhostQueue } from './backend.ts';
import type { MemoryPiece } from './memory-source.ts';

/** What the device is, apart from its queues. */
export interface PooledBackendOptions {
  readonly features: bigint;
  /** Its configuration space as it is now. */
  config(): Uint8Array;
  /** The driver writes `bytes` at `offset`; throws or rejects to refuse it. */
  writeConfig(offset: number, bytes: Uint8Array): void | Promise<void>;
  /** Forget what the driver chose. */
  reset(): void | Promise<void>;
}

/**
 * A device on the engine, as a vhost-user session drives it. Its memory source is `VhostUserMemory`.
 * Whoever gets the device's events passes its queue faults on to `queueBroken`.
 */
export class PooledBackend implements VhostBackend {
  onQueueBroken: ((index: number) => void) | undefined;
  readonly #device: PooledDevice;
  readonly #options: PooledBackendOptions;

  constructor(device: PooledDevice, options: PooledBackendOptions) {
    this.#device = device;
    this.#options = options;
  }

  get queueCount(): number {
    return this.#device.queues;
  }

  offeredFeatures(): bigint {
    return this.#options.features;
  }

  readConfig(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    bytes.set(this.#options.config().subarray(offset, offset + length));
    return bytes;
  }

  writeConfig(offset: number, bytes: Uint8Array): void | Promise<void> {
    return this.#options.writeConfig(offset, bytes);
  }

  reset(): void | Promise<void> {
    return this.#options.reset();
  }

  setMemory(pieces: readonly MemoryPiece[]): Promise<void> {
    return this.#device.setMemory(pieces);
  }

  startQueue({ index, layout, features, kickFd, callFd }: VhostQueue): Promise<void> {
    return this.#device.startQueue({
      index,
      layout,
      features,
      kickFd,
      signal: signalOf(callFd),
      // What an earlier back end published may not have been signalled.
      signalOnce: true,
    });
  }

  async stopQueue(index: number): Promise<QueuePosition> {
    const position = (await this.#device.stopQueues([index])).get(index);
    if (position === undefined) throw new Error(`queue ${index} did not run`);
    return position;
  }

  setCall(index: number, callFd: number): Promise<void> {
    return this.#device.setSignal(index, signalOf(callFd));
  }

  queueBroken(index: number): void {
    this.onQueueBroken?.(index);
  }
}

function signalOf(fd: number) {
  return fd < 0 ? undefined : { fd, index: -1 };
}
