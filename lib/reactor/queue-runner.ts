import type {
  FaultReason,
  GuestMemory,
  QueueFault,
  QueueLayout,
  QueuePort,
  QueuePosition,
  Virtqueue,
} from '../virtio/index.ts';
import { Chain, createQueue, Popped } from '../virtio/index.ts';
import type { QueueDevice } from './device.ts';
import type { DeviceModel, ModelQueue } from './model.ts';
import type { QueueStart, SignalTarget } from './orders.ts';
import { Counter } from './orders.ts';

/**
 * One virtqueue at work: takes chains to the device model, publishes what it answered, and knows
 * whether the driver is owed a signal. It does no waiting of its own.
 */
export class QueueRunner implements QueuePort {
  /** The number of the device it belongs to. */
  readonly deviceId: number;
  readonly index: number;
  readonly kickFd: number;
  signal: SignalTarget | undefined;
  /** A signal is due to the driver. */
  owesSignal: boolean;
  /** No further chains are taken. */
  stopping = false;
  /** Kicks are asked for: the driver will tell of its next chain. */
  armed = false;
  /** The loop is to look at it in this turn. */
  hot = false;
  readonly #heat: (runner: QueueRunner) => void;
  readonly #modelQueue: ModelQueue;
  readonly #device: QueueDevice;
  readonly #counters: Float64Array;
  readonly #chain = new Chain();
  readonly #layout: QueueLayout;
  #queue: Virtqueue | undefined;
  /** Where a queue without a ring goes on; after a fault, where it stood. */
  #position: QueuePosition;
  #staged = 0;
  #faultReported = false;

  /** `heat` is told when there is something to publish. */
  constructor(
    deviceId: number,
    start: QueueStart,
    model: DeviceModel,
    counters: Float64Array,
    heat: (runner: QueueRunner) => void,
  ) {
    this.deviceId = deviceId;
    this.index = start.index;
    this.kickFd = start.kickFd;
    this.signal = start.signal;
    this.owesSignal = start.signalOnce;
    this.#layout = start.layout;
    this.#position = start.layout.position;
    this.#counters = counters;
    this.#heat = heat;
    this.#modelQueue = model.createQueue({
      index: start.index,
      port: this,
      features: start.features,
      counters,
    });
    this.#device = this.#modelQueue.device;
  }

  /** True while the ring is not to be found in guest memory (it is being remapped). */
  get detached(): boolean {
    return this.#queue === undefined;
  }

  /** The driver is signalled through an eventfd. */
  get signalsEventfd(): boolean {
    return this.signal !== undefined && this.signal.index < 0;
  }

  get inFlight(): number {
    return this.#queue?.inFlight ?? 0;
  }

  get position(): QueuePosition {
    return this.#queue?.position ?? this.#position;
  }

  /**
   * Find the ring in memory. False when it is not (wholly) mapped now; throws when its addresses
   * can never work (misaligned).
   */
  attach(memory: GuestMemory): boolean {
    try {
      this.#queue = createQueue(memory, { ...this.#layout, position: this.#position });
    } catch (error) {
      if ((error as { reason?: string }).reason === 'ring-unmapped') return false;
      throw error;
    }
    this.armed = false;
    return true;
  }

  /** Let go of the ring; nothing may be in flight. The position is kept for `attach`. */
  detach(): void {
    if (this.#queue === undefined) return;
    this.#position = this.#queue.position;
    this.#queue = undefined;
    this.armed = false;
    // The driver cannot tell what was signalled while the ring was away.
    this.owesSignal = true;
  }

  complete(head: number, written: number): void {
    this.#queue!.complete(head, written);
    this.#staged++;
    if (!this.hot) this.#heat(this);
  }

  fail(reason: FaultReason, head: number, detail: number): void {
    this.#queue!.fail(reason, head, detail);
    if (!this.hot) this.#heat(this);
  }

  /** Take at most `limit` chains to the device; returns how many. */
  take(limit: number): number {
    const queue = this.#queue;
    if (queue === undefined || this.stopping || queue.fault !== undefined) return 0;
    if (this.armed) {
      queue.disableKicks();
      this.armed = false;
    }
    let taken = 0;
    while (taken < limit && queue.pop(this.#chain) === Popped.One) {
      this.#device.begin(this.#chain);
      taken++;
    }
    return taken;
  }

  /** Publish what was completed since the last call. */
  publish(): void {
    if (this.#staged === 0) return;
    this.#staged = 0;
    if (this.#queue!.publish()) this.owesSignal = true;
  }

  /** Ask for kicks before a sleep; true when a chain came meanwhile. */
  arm(): boolean {
    const queue = this.#queue;
    if (queue === undefined || this.stopping || this.armed || queue.fault !== undefined) {
      return false;
    }
    this.armed = true;
    if (!queue.enableKicks()) return false;
    queue.disableKicks();
    this.armed = false;
    return true;
  }

  available(): boolean {
    return this.#queue !== undefined && !this.stopping && this.#queue.available();
  }

  signalled(): void {
    this.owesSignal = false;
    this.#counters[Counter.Interrupts] = this.#counters[Counter.Interrupts]! + 1;
  }

  /** Memory under the rings was lost: nothing in them can be believed. */
  poison(): void {
    this.#queue?.fail('memory-vanished', -1, 0);
  }

  /** The fault to report, once. */
  takeFault(): QueueFault | undefined {
    const fault = this.#queue?.fault;
    if (fault === undefined || this.#faultReported) return undefined;
    this.#faultReported = true;
    return fault;
  }

  /** Stopped for good, nothing in flight: let go of what the device model holds for it. */
  release(): void {
    this.#device.reset();
    this.#modelQueue.release();
  }
}
