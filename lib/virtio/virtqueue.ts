import type { Chain } from './chain.ts';

/**
 * Why a queue was stopped. A queue that is broken stays broken until it is built anew: nothing more
 * is popped. Chains taken before may still be completed and published, so that no answer is lost.
 */
export interface QueueFault {
  /** One of the stable words of `FaultReason`. */
  readonly reason: FaultReason;
  /** The head (split) or buffer id (packed) concerned, -1 where none is known. */
  readonly head: number;
  /** A number that helps: the address, the length or the index that was refused. */
  readonly detail: number;
  /** What the memory's resolver threw, where it did. */
  readonly cause?: unknown;
}

export type FaultReason =
  | 'ring-layout'
  | 'ring-unmapped'
  | 'avail-index-jump'
  | 'head-out-of-range'
  | 'head-in-flight'
  | 'next-out-of-range'
  | 'chain-too-long'
  | 'readable-after-writable'
  | 'address-too-large'
  | 'buffer-unmapped'
  | 'buffer-not-readable'
  | 'buffer-not-writable'
  | 'indirect-not-negotiated'
  | 'indirect-in-indirect'
  | 'indirect-with-next'
  | 'indirect-length'
  | 'indirect-unmapped'
  | 'no-status-byte'
  | 'memory-vanished';

/** The outcome of `pop`. */
export const Popped = { None: 0, One: 1, Broken: -1 } as const;
export type Popped = (typeof Popped)[keyof typeof Popped];

/** What a device model may do with the queue it serves. */
export interface QueuePort {
  /**
   * Answer a chain: `written` bytes from its first writable byte on are valid. The used entry is
   * staged; the queue's owner publishes. Throws for a head that is not in flight.
   */
  complete(head: number, written: number): void;
  /**
   * The chain cannot be answered at all (no place for a status): mark the queue broken. The head is
   * in flight no more.
   */
  fail(reason: FaultReason, head: number, detail: number): void;
}

/**
 * A virtqueue, split or packed, as the device sees it. It knows neither transport nor notification:
 * it reads and writes guest memory and says when a signal is due.
 */
export interface Virtqueue extends QueuePort {
  readonly size: number;
  /** Set once the queue is broken. */
  readonly fault: QueueFault | undefined;
  /** Chains taken and not yet completed. */
  readonly inFlight: number;
  /**
   * Take the next available chain into `chain` (reused by the caller, nothing allocated).
   * `chain.head` identifies it until `complete`; it is in 0 … size-1 and unique while in flight.
   */
  pop(chain: Chain): Popped;
  /**
   * Make staged used entries visible to the driver, all at once; true when it wants a signal for
   * them. With event indices the first call after construction that has entries says true: where
   * a predecessor last signalled is not known.
   */
  publish(): boolean;
  /**
   * Ask for a kick at the next available chain. True when one became available meanwhile: then pop
   * again before waiting.
   */
  enableKicks(): boolean;
  /** Kicks are not needed for now. */
  disableKicks(): void;
  /** True when a chain is available (one load, for polling); never on a broken queue. */
  available(): boolean;
  /**
   * Where to go on. Valid when nothing is in flight and everything is published. On a broken queue
   * `avail` is the position of the chain that broke it.
   */
  readonly position: QueuePosition;
}

export interface QueuePosition {
  /** Split: next avail ring index to take (0 … 65535). Packed: offset | wrap counter << 15. */
  readonly avail: number;
  /** Split: used index. Packed: offset | wrap counter << 15. */
  readonly used: number;
}

/** What a transport knows of a queue. Addresses are guest addresses (IOVAs). */
export interface QueueLayout {
  readonly size: number;
  readonly desc: number;
  /** Avail ring (split) or driver event suppression area (packed). */
  readonly driver: number;
  /** Used ring (split) or device event suppression area (packed). */
  readonly device: number;
  readonly packed: boolean;
  readonly indirect: boolean;
  readonly eventIndex: boolean;
  readonly position: QueuePosition;
}
