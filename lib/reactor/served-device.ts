import type { IoEngine } from './io-engine.ts';
import type { DeviceModel, MemorySource, WorkerTables } from './model.ts';
import type { DeviceSpec, QueueStart, QueueStopped } from './orders.ts';
import { COUNTERS } from './orders.ts';
import { QueueRunner } from './queue-runner.ts';

/** What is to be done once the I/O of some queues has ended, and whom to tell. */
interface Drain {
  readonly runners: QueueRunner[];
  /** Stop them for good, or give them new memory and go on. */
  readonly stop: boolean;
  readonly memoryOptions: unknown;
  readonly done: (stopped: QueueStopped[]) => void;
}

/** What a finished drain leaves to the loop. */
export interface Drained {
  readonly stopped: readonly QueueRunner[];
  readonly resumed: readonly QueueRunner[];
}

/** A device on one reactor: its model, its guest memory, and those of its queues that run here. */
export class ServedDevice {
  readonly id: number;
  readonly runners = new Map<number, QueueRunner>();
  readonly #counters: Float64Array;
  readonly #source: MemorySource;
  readonly #model: DeviceModel;
  readonly #heat: (runner: QueueRunner) => void;
  /** In the order they were asked for: a stop after a memory change waits for it. */
  readonly #drains: Drain[] = [];

  constructor(
    spec: DeviceSpec,
    tables: WorkerTables,
    engine: IoEngine,
    heat: (runner: QueueRunner) => void,
  ) {
    const openModel = tables.models[spec.model];
    const openMemory = tables.memories[spec.memory];
    if (openModel === undefined) throw new Error(`reactor: no device model ${spec.model}`);
    if (openMemory === undefined) throw new Error(`reactor: no memory source ${spec.memory}`);
    this.id = spec.id;
    this.#heat = heat;
    this.#counters = new Float64Array(spec.counters);
    this.#source = openMemory(spec.memoryOptions);
    this.#model = openModel(spec.modelOptions, engine);
  }

  get memory() {
    return this.#source.memory;
  }

  /** True when a mapping lost its pages. */
  poisoned(): boolean {
    return this.#source.poisoned();
  }

  tell(message: unknown): void {
    this.#model.tell?.(message);
  }

  startQueue(start: QueueStart): QueueRunner {
    if (this.runners.has(start.index)) throw new Error(`queue ${start.index} runs already`);
    const counters = this.#counters.subarray(start.index * COUNTERS, (start.index + 1) * COUNTERS);
    const runner = new QueueRunner(this.id, start, this.#model, counters, this.#heat);
    this.runners.set(start.index, runner);
    for (const drain of this.#drains) {
      // Memory that is about to be replaced goes from under this queue too.
      if (!drain.stop) drain.runners.push(runner);
    }
    runner.stopping = this.#stops(runner);
    return runner;
  }

  /** Stop the queues of `indexes` (those that run) once their I/O has ended. */
  stop(indexes: readonly number[], done: (stopped: QueueStopped[]) => void): void {
    const runners = indexes.flatMap((index) => this.runners.get(index) ?? []);
    this.#pause({ runners, stop: true, memoryOptions: undefined, done });
  }

  /** Replace the memory under all queues once their I/O has ended, then go on. */
  replaceMemory(memoryOptions: unknown, done: (stopped: QueueStopped[]) => void): void {
    this.#pause({ runners: [...this.runners.values()], stop: false, memoryOptions, done });
  }

  get draining(): boolean {
    return this.#drains.length > 0;
  }

  /** True when the oldest drain waits for nothing more. */
  get drained(): boolean {
    const drain = this.#drains[0];
    return drain?.runners.every((runner) => runner.inFlight === 0) ?? false;
  }

  /** Carry out the oldest drain; only when `drained`. Answered by `done` as the last step. */
  finishDrain(): Drained & { readonly done: () => void } {
    const drain = this.#drains.shift()!;
    if (drain.stop) {
      const stopped = drain.runners.map(({ index, position }) => ({ index, position }));
      for (const runner of drain.runners) {
        runner.release();
        this.runners.delete(runner.index);
      }
      return { stopped: drain.runners, resumed: [], done: () => drain.done(stopped) };
    }
    for (const runner of drain.runners) runner.detach();
    this.#source.replace(drain.memoryOptions);
    const resumed = drain.runners.filter((runner) => this.runners.get(runner.index) === runner);
    for (const runner of resumed) runner.stopping = this.#stops(runner);
    return { stopped: [], resumed, done: () => drain.done([]) };
  }

  /** Nothing runs here any more: release model and memory. */
  close(): void {
    for (const runner of this.runners.values()) runner.release();
    this.runners.clear();
    this.#model.close();
    this.#source.release();
  }

  #pause(drain: Drain): void {
    for (const runner of drain.runners) runner.stopping = true;
    this.#drains.push(drain);
  }

  #stops(runner: QueueRunner): boolean {
    return this.#drains.some((drain) => drain.runners.includes(runner));
  }
}
