import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads';
import type { Addon } from '../native/index.ts';
import { emptyList } from '../virtio/index.ts';
import type { IoEngine } from './io-engine.ts';
import type { WorkerTables } from './model.ts';
import type { Order, ReactorOptions, Report } from './orders.ts';
import type { QueueRunner } from './queue-runner.ts';
import { ServedDevice } from './served-device.ts';
import { Spin } from './spin.ts';

/** The key under which the engine reports orders; queues have keys from 1 on. */
const ORDERS = 0;

/** Chains taken from one queue before the others get their turn. */
const BATCH = 256;

/**
 * Answers are shown to drivers so many at a time: one that is awake makes new requests of them while the
 * others are worked on, so that the next batch is there when this one ends.
 */
const PIECE = 8;

/**
 * Signalled so many requests before the end of a batch, a driver that sleeps has woken and made new
 * requests when the rest is done: it needs some 10 µs for the one, and as much again for the other.
 */
const WAKE_REQUESTS = 48;

/** Turns over busy queues before completions and orders are looked at. */
const ROUNDS = 8;

/** How long a ring without a kick descriptor may wait to be looked at. */
const POLLED_RING_US = 100;

/** A refused interrupt, or a ring that is not mapped, is tried again after this long. */
const RETRY_MS = 1;

const EINVAL = 22;

const signalsEventfd = (runner: QueueRunner) => runner.signalsEventfd;

interface NumberedOrder {
  readonly id: number;
  readonly order: Order;
}

/**
 * The engine's thread: waits in one system call for kicks, completions and orders, and drives any
 * number of queues of any number of devices. It returns when ordered to exit. What runs once a turn
 * allocates nothing: it counts by index, since `for … of` makes an iterator until it is compiled.
 */
export class ReactorLoop {
  readonly #engine: IoEngine;
  readonly #tables: WorkerTables;
  readonly #port: MessagePort;
  readonly #devices = new Map<number, ServedDevice>();
  readonly #runners: (QueueRunner | undefined)[] = [undefined];
  /** Queues with something to look at. */
  #hot: QueueRunner[] = emptyList();
  #retrying: QueueRunner[] = emptyList();
  /** Devices with orders that wait for I/O. */
  #draining: ServedDevice[] = emptyList();
  #polledRings = 0;
  readonly #spin: Spin;
  readonly #sigbus: Uint32Array;
  #sigbusSeen: number;
  #exit = false;

  constructor(
    addon: Addon,
    engine: IoEngine,
    tables: WorkerTables,
    port: MessagePort,
    orderFd: number,
    options: ReactorOptions,
  ) {
    this.#engine = engine;
    this.#tables = tables;
    this.#port = port;
    this.#spin = new Spin(addon, options.pollUs);
    this.#sigbus = new Uint32Array(addon.sigbusCounter());
    this.#sigbusSeen = this.#sigbus[0]!;
    engine.onSignalRefused = (fd, index, errno) => this.#signalRefused(fd, index, errno);
    engine.watch(orderFd, ORDERS);
  }

  /** Serve until ordered to exit. */
  run(): void {
    while (!this.#exit) this.step();
  }

  /** Do all there is to do; where there is nothing, sleep until there is. */
  step(): void {
    const busy = this.#turn();
    if ((this.#draining.length > 0 && this.#finishDrains()) || busy) {
      this.#sendSignals();
      this.#engine.wait(0, this.#onEvent);
      return;
    }
    // While the disk works it sets the pace: a sleep is as quick as a spin, and free.
    if (this.#spin.enabled && this.#hot.length > 0 && this.#engine.inFlight === 0) {
      this.#sendSignals();
      if (this.#engine.wait(0, this.#onEvent)) return;
      if (this.#spin.until(this.#somethingToDo)) return;
    }
    if (this.#armAll()) return;
    this.#sendSignals();
    this.#engine.wait(this.#timeout(), this.#onEvent);
    this.#spin.woke();
    if (this.#retrying.length > 0) this.#retry();
  }

  /** Carry out the orders that have come, and serve nothing. False once ordered to exit. */
  takeOrders(): boolean {
    this.#engine.wait(0, this.#onEvent);
    return !this.#exit;
  }

  /** Look at every hot queue until none has more, a bounded number of times; true when some has. */
  #turn(): boolean {
    const hot = this.#hot;
    let taken = 0;
    for (let round = 0; round < ROUNDS; round++) {
      taken = 0;
      for (let i = 0; i < hot.length; i++) taken += hot[i]!.take(BATCH);
      if (this.#spin.enabled) this.#runPieces();
      this.#engine.submit();
      this.#publish();
      if (this.#sigbus[0] !== this.#sigbusSeen) this.#memoryVanished();
      if (taken === 0) break;
      this.#spin.worked();
    }
    return taken > 0;
  }

  /**
   * Execute all but the end of what was taken, piece by piece, and tell drivers that sleep in time. Only
   * where that is done through eventfds: each VDUSE interrupt costs the driver more than it would gain.
   */
  #runPieces(): void {
    const engine = this.#engine;
    if (engine.waiting < 2 || !this.#hot.some(signalsEventfd)) return;
    // No more looks at queues than there are requests, however many queues are busy.
    const piece = Math.max(PIECE, this.#hot.length);
    let told = false;
    while (!told || engine.waiting > piece) {
      engine.submitSome(Math.min(piece, engine.waiting >> 1));
      this.#publish();
      if (told || engine.waiting > WAKE_REQUESTS) continue;
      told = true;
      this.#sendSignals(true);
      engine.sendSignals();
    }
  }

  #publish(): void {
    const hot = this.#hot;
    for (let i = 0; i < hot.length; i++) hot[i]!.publish();
  }

  readonly #somethingToDo = (): boolean => {
    if (this.#engine.ready()) return true;
    const hot = this.#hot;
    for (let i = 0; i < hot.length; i++) if (hot[i]!.available()) return true;
    return false;
  };

  /** Before a sleep: ask every hot queue's driver for kicks. True when a chain came meanwhile. */
  #armAll(): boolean {
    const hot = this.#hot;
    let more = false;
    for (let i = 0; i < hot.length; i++) if (hot[i]!.arm()) more = true;
    if (more) return true;
    for (let i = 0; i < hot.length; i++) this.#reportFault(hot[i]!);
    this.#sendSignals();
    // Not by its length: set to 0 it gives the elements' memory up, and the next push allocates.
    while (hot.length > 0) hot.pop()!.hot = false;
    if (this.#polledRings > 0) {
      for (const runner of this.#runners) {
        if (runner !== undefined && runner.kickFd < 0) this.#heat(runner);
      }
    }
    return false;
  }

  readonly #heat = (runner: QueueRunner): void => {
    if (runner.hot) return;
    runner.hot = true;
    this.#hot.push(runner);
  };

  #sendSignals(eventfdsOnly = false): void {
    const hot = this.#hot;
    for (let i = 0; i < hot.length; i++) {
      const runner = hot[i]!;
      if (runner.owesSignal && (!eventfdsOnly || runner.signalsEventfd)) this.#signal(runner);
    }
  }

  #signal(runner: QueueRunner): void {
    const signal = runner.signal;
    if (signal === undefined) runner.owesSignal = false;
    else {
      this.#engine.signal(signal.fd, signal.index);
      runner.signalled();
    }
  }

  #timeout(): number {
    if (this.#retrying.length > 0) return RETRY_MS * 1000;
    return this.#polledRings > 0 ? POLLED_RING_US : -1;
  }

  readonly #onEvent = (key: number): void => {
    if (key === ORDERS) {
      this.#takeOrders();
      return;
    }
    const runner = this.#runners[key];
    if (runner === undefined) return;
    if (runner.detached) this.#attach(runner);
    this.#heat(runner);
  };

  // --- orders

  #takeOrders(): void {
    let received: { message: NumberedOrder } | undefined;
    while ((received = receiveMessageOnPort(this.#port) as typeof received) !== undefined) {
      const { id, order } = received.message;
      try {
        this.#carryOut(id, order);
      } catch (error) {
        const { code, message } = error as { code?: string; message: string };
        this.#report({ type: 'refused', id, code: code ?? 'ERR_VDUSE_REACTOR', message });
      }
    }
  }

  #carryOut(id: number, order: Order): void {
    switch (order.type) {
      case 'add-device':
        this.#devices.set(
          order.device.id,
          new ServedDevice(order.device, this.#tables, this.#engine, this.#heat),
        );
        break;
      case 'remove-device':
        // Its queues were stopped before: nothing is in flight.
        this.#devices.get(order.device)?.close();
        this.#devices.delete(order.device);
        break;
      case 'start-queue':
        this.#startQueue(this.#device(order.device), order);
        break;
      case 'set-signal': {
        const runner = this.#device(order.device).runners.get(order.index);
        if (runner === undefined) break;
        runner.signal = order.signal;
        runner.owesSignal = true;
        this.#heat(runner);
        break;
      }
      case 'stop-queues':
        this.#drain(order.device).stop(order.indexes, (stopped) => this.#done(id, stopped));
        return;
      case 'set-memory':
        this.#drain(order.device).replaceMemory(order.memoryOptions, () => this.#done(id, []));
        return;
      case 'tell-model':
        this.#device(order.device).tell(order.message);
        break;
      case 'exit':
        this.#exit = true;
        break;
    }
    this.#done(id, undefined);
  }

  #startQueue(device: ServedDevice, order: Extract<Order, { type: 'start-queue' }>): void {
    const runner = device.startQueue(order.queue);
    let key = this.#runners.indexOf(undefined, 1);
    if (key < 0) key = this.#runners.length;
    this.#runners[key] = runner;
    if (runner.kickFd >= 0) this.#engine.watch(runner.kickFd, key);
    else this.#polledRings++;
    this.#attach(runner);
    // Chains may have been made available before the kick descriptor was ours.
    this.#heat(runner);
  }

  /** The device, from now on looked at in each turn until its orders are carried out. */
  #drain(id: number): ServedDevice {
    const device = this.#device(id);
    if (!this.#draining.includes(device)) this.#draining.push(device);
    return device;
  }

  /** Orders that waited for I/O are carried out once it ended; true when there was one. */
  #finishDrains(): boolean {
    let any = false;
    for (const device of this.#draining) {
      while (device.draining && device.drained) {
        // What was completed last is published and signalled before the answer.
        for (const runner of device.runners.values()) runner.publish();
        this.#sendSignals();
        this.#engine.wait(0, this.#onEvent);
        const { stopped, resumed, done } = device.finishDrain();
        for (const runner of stopped) this.#forget(runner);
        for (const runner of resumed) {
          this.#attach(runner);
          this.#heat(runner);
        }
        done();
        any = true;
      }
    }
    if (any) this.#draining = this.#draining.filter((device) => device.draining);
    return any;
  }

  #forget(runner: QueueRunner): void {
    this.#reportFault(runner);
    const key = this.#runners.indexOf(runner, 1);
    if (key > 0) {
      if (runner.kickFd >= 0) this.#engine.unwatch(key);
      else this.#polledRings--;
      this.#runners[key] = undefined;
    }
    this.#hot = this.#hot.filter((other) => other !== runner);
    this.#retrying = this.#retrying.filter((other) => other !== runner);
  }

  #device(id: number): ServedDevice {
    const device = this.#devices.get(id);
    if (device === undefined) throw new Error(`reactor: no device ${id}`);
    return device;
  }

  #done(id: number, value: unknown): void {
    this.#report({ type: 'done', id, value });
  }

  #report(report: Report): void {
    this.#port.postMessage(report);
  }

  // --- trouble

  #attach(runner: QueueRunner): void {
    const device = this.#device(runner.deviceId);
    try {
      if (runner.attach(device.memory)) return;
    } catch (error) {
      runner.stopping = true;
      this.#report({
        type: 'note',
        device: device.id,
        text: `queue ${runner.index}: ${(error as Error).message}: queue stopped`,
      });
      return;
    }
    // The ring is being remapped: look again soon.
    if (!this.#retrying.includes(runner)) this.#retrying.push(runner);
  }

  #signalRefused(fd: number, index: number, errno: number): void {
    for (const runner of this.#runners) {
      if (runner?.signal === undefined) continue;
      if (runner.signal.fd !== fd || runner.signal.index !== index) continue;
      // VDUSE refuses interrupts until it has stored DRIVER_OK, after our reply: try again.
      if (errno === EINVAL && index >= 0) {
        if (!this.#retrying.includes(runner)) this.#retrying.push(runner);
        return;
      }
      runner.signal = undefined;
      this.#report({
        type: 'note',
        device: runner.deviceId,
        text: `queue ${runner.index}: the driver cannot be signalled any more (errno ${errno})`,
      });
    }
  }

  #retry(): void {
    const again = this.#retrying;
    this.#retrying = emptyList();
    for (const runner of again) {
      if (runner.detached) this.#attach(runner);
      runner.owesSignal = true;
      this.#heat(runner);
    }
  }

  #memoryVanished(): void {
    this.#sigbusSeen = this.#sigbus[0]!;
    for (const device of this.#devices.values()) {
      if (!device.poisoned()) continue;
      for (const runner of device.runners.values()) {
        runner.poison();
        this.#reportFault(runner);
      }
    }
  }

  #reportFault(runner: QueueRunner): void {
    const fault = runner.takeFault();
    if (fault === undefined) return;
    this.#report({ type: 'fault', device: runner.deviceId, index: runner.index, fault });
  }
}
