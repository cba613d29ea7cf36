import type { QueueLayout, QueuePosition } from '../../virtio/index.ts';
import type { MemoryPiece } from './memory-source.ts';

/** A ring that may be served. Descriptors stay open until its `stopQueue` has resolved. */
export interface VhostQueue {
  readonly index: number;
  /** Addresses are guest addresses, each ring part lies within one memory piece. */
  readonly layout: QueueLayout;
  /** Feature bits the front end accepted (bit 30 taken out). */
  readonly features: bigint;
  /** An eventfd, or -1: the ring must be polled. */
  readonly kickFd: number;
  /** An eventfd, or -1: the front end polls. */
  readonly callFd: number;
}

/**
 * What a vhost-user session drives: a device and the engine that serves its queues. Calls come one
 * at a time except for `stopQueue`, which may come for several queues at once.
 */
export interface VhostBackend {
  /** Queues the device has: 1 … 256. */
  readonly queueCount: number;
  /** Feature bits to offer; bit 30 (protocol features) is the session's. */
  offeredFeatures(): bigint;
  /** Exactly `length` bytes of configuration space, zeroes where it has none. */
  readConfig(offset: number, length: number): Uint8Array;
  /**
   * The driver writes configuration space; throws or rejects to refuse it. It is in force once the
   * promise, if there is one, has resolved.
   */
  writeConfig(offset: number, bytes: Uint8Array): void | Promise<void>;
  /**
   * Replace guest memory (no pieces: drop it all). Queues that run are drained first and go on after:
   * the rings of all of them are at the same guest addresses in the new memory. Resolves when no I/O
   * uses the old mappings; descriptors of pieces that are gone are closed then.
   */
  setMemory(pieces: readonly MemoryPiece[]): Promise<void>;
  startQueue(queue: VhostQueue): Promise<void>;
  /** Drain a queue that runs, publish and signal what it owes, stop it. Resolves with where it stands. */
  stopQueue(index: number): Promise<QueuePosition>;
  /** Another call descriptor (-1: none) for a queue that runs; the old one is closed afterwards. */
  setCall(index: number, callFd: number): Promise<void>;
  /** RESET_DEVICE, all queues are stopped: forget what the driver chose (CONFIG_WCE). */
  reset(): void | Promise<void>;
  /** Set by the session: to be called when a queue that runs was stopped because its ring is broken. */
  onQueueBroken: ((index: number) => void) | undefined;
}
