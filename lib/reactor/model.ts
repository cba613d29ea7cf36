import type { IoPort } from '../native/index.ts';
import type { GuestMemory, QueuePort } from '../virtio/index.ts';
import type { QueueDevice } from './device.ts';
import type { ReactorOptions } from './orders.ts';

/** What a device model gets for one queue. */
export interface QueueContext {
  readonly index: number;
  readonly port: QueuePort;
  /** Feature bits the driver accepted. */
  readonly features: bigint;
  /** COUNTERS numbers (see orders.ts); the model writes all but the interrupts. */
  readonly counters: Float64Array;
}

/** One queue's device object and how to let go of it. */
export interface ModelQueue {
  readonly device: QueueDevice;
  /** The queue is stopped, nothing is in flight. */
  release(): void;
}

/** A device model as a worker holds it: it lives as long as the device, its queues come and go. */
export interface DeviceModel {
  createQueue(context: QueueContext): ModelQueue;
  /** Something the driver chose in configuration space; the shape is the model's. */
  tell?(message: unknown): void;
  /** All queues are gone: release what the model holds. */
  close(): void;
}

export type OpenModel = (options: unknown, io: IoPort) => DeviceModel;

/** Guest memory and where it comes from. */
export interface MemorySource {
  readonly memory: GuestMemory;
  /** True when a mapping lost its pages (a file cut short under it). */
  poisoned(): boolean;
  /** Drop every mapping; then, where the source is told its regions, map those of `options`. */
  replace(options: unknown): void;
  /** Drop every mapping. */
  release(): void;
}

export type OpenMemory = (options: unknown) => MemorySource;

/** What a worker can build: the daemon's worker file fills these tables. */
export interface WorkerTables {
  readonly models: Readonly<Record<string, OpenModel>>;
  readonly memories: Readonly<Record<string, OpenMemory>>;
  /**
   * Makes the thread quick before its first request; see `ReactorOptions.rehearse`. It yields every few
   * milliseconds, and may be ended there.
   */
  readonly rehearse?: (tables: WorkerTables, options: ReactorOptions) => Iterable<void>;
}
