import type { Addon } from '../native/index.ts';
import type { QueueFault, QueuePosition } from '../virtio/index.ts';
import type {
  DeviceSpec,
  QueueStart,
  QueueStopped,
  ReactorOptions,
  SignalTarget,
} from './orders.ts';
import { COUNTERS, Counter } from './orders.ts';
import { Reactor } from './reactor.ts';

export interface QueueCounters {
  readonly requests: number;
  readonly bytes: number;
  readonly interrupts: number;
  readonly errors: number;
}

/** What a device's owner is told of it. */
export interface DeviceEvents {
  /** A queue was stopped for good: its ring or a chain in it made no sense. */
  fault(index: number, fault: QueueFault): void;
  note(text: string): void;
}

export interface PoolOptions extends ReactorOptions {
  /** 1 … 64. */
  readonly threads: number;
}

/** The engine: a few reactors, and the devices spread over them queue by queue. */
export class ReactorPool {
  readonly #reactors: Reactor[];
  readonly #devices: Map<number, DeviceEvents>;
  #nextDevice = 1;
  #nextQueue = 0;

  /** Start `threads` reactors whose first file is `entry`. `died` is told of a thread that ended by itself. */
  static async start(
    addon: Addon,
    entry: URL,
    options: PoolOptions,
    died: (error: Error) => void,
  ): Promise<ReactorPool> {
    const devices = new Map<number, DeviceEvents>();
    const events = {
      fault: (report: { device: number; index: number; fault: QueueFault }) =>
        devices.get(report.device)?.fault(report.index, report.fault),
      note: (report: { device: number; text: string }) =>
        devices.get(report.device)?.note(report.text),
      died,
    };
    const reactors = await Promise.all(
      Array.from({ length: options.threads }, () => Reactor.start(addon, entry, options, events)),
    );
    return new ReactorPool(reactors, devices);
  }

  private constructor(reactors: Reactor[], devices: Map<number, DeviceEvents>) {
    this.#reactors = reactors;
    this.#devices = devices;
  }

  get threads(): number {
    return this.#reactors.length;
  }

  /** `io_uring` or `pool`, and why it is the pool. */
  get engine(): { readonly name: string; readonly note: string | undefined } {
    const { engine, engineNote } = this.#reactors[0]!;
    return { name: engine, note: engineNote };
  }

  /** Make a device known to the reactors that will serve its queues. */
  async addDevice(
    spec: Omit<DeviceSpec, 'id' | 'counters'>,
    events: DeviceEvents,
  ): Promise<PooledDevice> {
    const id = this.#nextDevice++;
    const queueReactors = Array.from(
      { length: spec.queues },
      () => this.#reactors[this.#nextQueue++ % this.#reactors.length]!,
    );
    const counters = new SharedArrayBuffer(spec.queues * COUNTERS * 8);
    const device = { ...spec, id, counters };
    const used = [...new Set(queueReactors)];
    this.#devices.set(id, events);
    try {
      await Promise.all(used.map((reactor) => reactor.order({ type: 'add-device', device })));
    } catch (error) {
      this.#devices.delete(id);
      await Promise.allSettled(
        used.map((reactor) => reactor.order({ type: 'remove-device', device: id })),
      );
      throw error;
    }
    return new PooledDevice(id, queueReactors, counters, () => this.#devices.delete(id));
  }

  /** End all threads; devices must have been removed. */
  async close(): Promise<void> {
    await Promise.all(this.#reactors.map((reactor) => reactor.close()));
  }
}

/** A device as its transport drives it. */
export class PooledDevice {
  readonly #id: number;
  readonly #queueReactors: readonly Reactor[];
  readonly #reactors: readonly Reactor[];
  readonly #counters: Float64Array;
  readonly #removed: () => void;

  constructor(
    id: number,
    queueReactors: readonly Reactor[],
    counters: SharedArrayBuffer,
    removed: () => void,
  ) {
    this.#id = id;
    this.#queueReactors = queueReactors;
    this.#reactors = [...new Set(queueReactors)];
    this.#counters = new Float64Array(counters);
    this.#removed = removed;
  }

  get queues(): number {
    return this.#queueReactors.length;
  }

  async startQueue(queue: QueueStart): Promise<void> {
    await this.#queueReactors[queue.index]!.order({
      type: 'start-queue',
      device: this.#id,
      queue,
    });
  }

  /** Drain and stop; resolves with where each of those that ran stood. */
  async stopQueues(indexes: readonly number[]): Promise<Map<number, QueuePosition>> {
    const stopped = await Promise.all(
      this.#reactors.map(async (reactor) => {
        const mine = indexes.filter((index) => this.#queueReactors[index] === reactor);
        if (mine.length === 0) return [];
        return (await reactor.order({
          type: 'stop-queues',
          device: this.#id,
          indexes: mine,
        })) as QueueStopped[];
      }),
    );
    return new Map(stopped.flat().map(({ index, position }) => [index, position]));
  }

  async setSignal(index: number, signal: SignalTarget | undefined): Promise<void> {
    await this.#queueReactors[index]!.order({
      type: 'set-signal',
      device: this.#id,
      index,
      signal,
    });
  }

  /** Replace guest memory everywhere; resolves when no I/O uses the old any more. */
  async setMemory(memoryOptions: unknown): Promise<void> {
    await Promise.all(
      this.#reactors.map((reactor) =>
        reactor.order({ type: 'set-memory', device: this.#id, memoryOptions }),
      ),
    );
  }

  /** Pass a message on to the device's model on every reactor. */
  async tellModel(message: unknown): Promise<void> {
    await Promise.all(
      this.#reactors.map((reactor) =>
        reactor.order({ type: 'tell-model', device: this.#id, message }),
      ),
    );
  }

  /** Its queues must have been stopped. */
  async remove(): Promise<void> {
    await Promise.all(
      this.#reactors.map((reactor) => reactor.order({ type: 'remove-device', device: this.#id })),
    );
    this.#removed();
  }

  counters(): QueueCounters[] {
    return this.#queueReactors.map((_, index) => {
      const at = index * COUNTERS;
      return {
        requests: this.#counters[at + Counter.Requests]!,
        bytes: this.#counters[at + Counter.Bytes]!,
        interrupts: this.#counters[at + Counter.Interrupts]!,
        errors: this.#counters[at + Counter.Errors]!,
      };
    });
  }
}
