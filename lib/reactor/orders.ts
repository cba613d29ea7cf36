import type { QueueFault, QueueLayout, QueuePosition } from '../virtio/index.ts';
import type { IoPolicy } from './io-engine.ts';

/** Where a queue's signal goes: an eventfd (index -1), or a VDUSE device's interrupt of that queue. */
export interface SignalTarget {
  readonly fd: number;
  readonly index: number;
}

/** What a transport gives a queue. */
export interface QueueStart {
  readonly index: number;
  readonly layout: QueueLayout;
  /** An eventfd the driver kicks; -1: none, the ring is polled. */
  readonly kickFd: number;
  /** Undefined: the driver polls. */
  readonly signal: SignalTarget | undefined;
  /** Feature bits the driver accepted. */
  readonly features: bigint;
  /** Signal once at the start whatever the ring says (taking over from an earlier daemon). */
  readonly signalOnce: boolean;
}

/** A device as a reactor must know it. `model` and `memory` name entries of the worker's tables. */
export interface DeviceSpec {
  readonly id: number;
  readonly model: string;
  readonly modelOptions: unknown;
  readonly memory: string;
  readonly memoryOptions: unknown;
  readonly queues: number;
  /** COUNTERS numbers a queue, written by the reactor that serves it. */
  readonly counters: SharedArrayBuffer;
}

/** What the main thread tells a reactor. Each order is answered once it is carried out. */
export type Order =
  | { readonly type: 'add-device'; readonly device: DeviceSpec }
  | { readonly type: 'remove-device'; readonly device: number }
  | { readonly type: 'start-queue'; readonly device: number; readonly queue: QueueStart }
  /** Drain and stop; answered with the positions reached. */
  | { readonly type: 'stop-queues'; readonly device: number; readonly indexes: readonly number[] }
  | {
      readonly type: 'set-signal';
      readonly device: number;
      readonly index: number;
      readonly signal: SignalTarget | undefined;
    }
  /** Drain, replace the memory (`options` as for the source), go on. Answered when no I/O uses the old. */
  | { readonly type: 'set-memory'; readonly device: number; readonly memoryOptions: unknown }
  /** Pass `message` on to the device's model. */
  | { readonly type: 'tell-model'; readonly device: number; readonly message: unknown }
  | { readonly type: 'exit' };

export interface QueueStopped {
  readonly index: number;
  readonly position: QueuePosition;
}

export type Report =
  | { readonly type: 'ready'; readonly engine: string; readonly note: string | undefined }
  | { readonly type: 'done'; readonly id: number; readonly value: unknown }
  | {
      readonly type: 'refused';
      readonly id: number;
      readonly code: string;
      readonly message: string;
    }
  | {
      readonly type: 'fault';
      readonly device: number;
      readonly index: number;
      readonly fault: QueueFault;
    }
  | { readonly type: 'note'; readonly device: number; readonly text: string };

export interface ReactorOptions {
  /** Spin at most this long for more work before sleeping; 0 never spins. */
  readonly pollUs: number;
  readonly policy: IoPolicy;
  /** `pool` even where io_uring is allowed. */
  readonly engine: 'auto' | 'pool';
  /** Have the code compiled that a request runs through before the first one is served. */
  readonly rehearse: boolean;
}

/** Counters of one queue, as float64 slots in `DeviceSpec.counters`. */
export const COUNTERS = 4;
export const Counter = { Requests: 0, Bytes: 1, Errors: 2, Interrupts: 3 } as const;
