import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import type { Addon, OwnedFd } from '../native/index.ts';
import type { Order, ReactorOptions, Report } from './orders.ts';
import type { WorkerStart } from './worker.ts';

/**
 * Only what is loaded and compiled makes garbage: collected early it takes 2 to 3 MB less, for good, than in
 * the 48 MB V8 would let it grow to.
 */
const YOUNG_MB = 2;

/** What a reactor tells without being asked. */
export interface ReactorEvents {
  fault(report: Extract<Report, { type: 'fault' }>): void;
  note(report: Extract<Report, { type: 'note' }>): void;
  /** The thread died; nothing it served is served any more. */
  died(error: Error): void;
}

/** An order a reactor could not carry out. */
export class ReactorError extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.name = 'ReactorError';
    this.code = code;
  }
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** Threads that sleep in the kernel must be woken before the process can end. */
const sleeping = new Set<() => void>();
let exitHookInstalled = false;

function wakeAtExit(wake: () => void): void {
  sleeping.add(wake);
  if (exitHookInstalled) return;
  exitHookInstalled = true;
  process.on('exit', () => {
    for (const wakeOne of sleeping) wakeOne();
  });
}

/** One engine thread, seen from the main thread. */
export class Reactor {
  /** What it waits with: `io_uring` or `pool`. */
  readonly engine: string;
  /** Why it is not io_uring. */
  readonly engineNote: string | undefined;
  readonly #addon: Addon;
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #orderFd: OwnedFd;
  readonly #pending = new Map<number, Pending>();
  readonly #wake: () => void;
  readonly #exited: Promise<void>;
  #nextId = 1;
  #dead: Error | undefined;

  /** Start a thread whose first file is `entry`; resolves when it waits for orders. */
  static async start(
    addon: Addon,
    entry: URL,
    options: ReactorOptions,
    events: ReactorEvents,
  ): Promise<Reactor> {
    const { port1, port2 } = new MessageChannel();
    const orderFd = addon.eventfd(0);
    const start: WorkerStart = { port: port2, orderFd: orderFd.fd, options };
    const worker = new Worker(entry, {
      workerData: start,
      transferList: [port2],
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB },
      // What a program preloads (tracers, loaders) has no business on an engine's thread; the sources
      // themselves need their loader.
      ...(entry.pathname.endsWith('.ts') ? {} : { execArgv: [] }),
    });
    const ready = await new Promise<Extract<Report, { type: 'ready' }>>((resolve, reject) => {
      port1.once('message', resolve);
      worker.once('error', reject);
      worker.once('exit', (code) => reject(new Error(`reactor: ended at its start (${code})`)));
    }).catch((error) => {
      orderFd.close();
      port1.close();
      throw error;
    });
    worker.removeAllListeners('error');
    worker.removeAllListeners('exit');
    return new Reactor(addon, worker, port1, orderFd, ready, events);
  }

  private constructor(
    addon: Addon,
    worker: Worker,
    port: MessagePort,
    orderFd: OwnedFd,
    ready: Extract<Report, { type: 'ready' }>,
    events: ReactorEvents,
  ) {
    this.#addon = addon;
    this.#worker = worker;
    this.#port = port;
    this.#orderFd = orderFd;
    this.engine = ready.engine;
    this.engineNote = ready.note;
    // Woken alone it would be asleep again before Node ends it: it is told to leave.
    this.#wake = () => {
      port.postMessage({ id: 0, order: { type: 'exit' } });
      addon.eventfdSignal(orderFd.fd);
    };
    wakeAtExit(this.#wake);
    port.on('message', (report: Report) => this.#reported(report, events));
    this.#exited = new Promise((resolve) => worker.once('exit', () => resolve()));
    worker.once('error', (error) => this.#died(error, events));
    void this.#exited.then(() => this.#died(new Error('reactor: the thread has ended'), events));
  }

  /** Resolves with the answer once the order is carried out. */
  order(order: Order): Promise<unknown> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#port.postMessage({ id, order });
      this.#addon.eventfdSignal(this.#orderFd.fd);
    });
  }

  /** End the thread. Its devices must have been removed. */
  async close(): Promise<void> {
    if (this.#dead === undefined) {
      // Not its answer but its end is waited for: they come on two ways, in either order.
      void this.order({ type: 'exit' });
      this.#dead = new Error('reactor: closed');
    }
    await this.#exited;
    sleeping.delete(this.#wake);
    this.#port.close();
    this.#orderFd.close();
  }

  #reported(report: Report, events: ReactorEvents): void {
    switch (report.type) {
      case 'done':
        this.#settle(report.id)?.resolve(report.value);
        break;
      case 'refused':
        this.#settle(report.id)?.reject(new ReactorError(report.code, report.message));
        break;
      case 'fault':
        events.fault(report);
        break;
      case 'note':
        events.note(report);
        break;
      case 'ready':
        break;
    }
  }

  #settle(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    return pending;
  }

  #died(error: Error, events: ReactorEvents): void {
    if (this.#dead !== undefined) return;
    this.#dead = error;
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
    events.died(error);
  }

  /** The thread's number, for statistics. */
  get threadId(): number {
    return this.#worker.threadId;
  }
}
