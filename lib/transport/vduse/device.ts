import { readFileSync, readSync, writeSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Addon, FdWatcher, OwnedFd, VduseVqInfo } from '../../native/index.ts';
import type { PooledDevice } from '../../reactor/index.ts';
import { boundDriver } from '../../vdpa/index.ts';
import type { QueueLayout, QueuePosition } from '../../virtio/index.ts';
import { Feature, Status } from '../../virtio/index.ts';
import { givenUp } from './errors.ts';
import { leftMemoryInTheWay } from './left-memory.ts';
import { buildResponse, parseMessage, REQUEST_BYTES, type VduseMessage } from './messages.ts';

/** Queues may become ready a little after DRIVER_OK. */
const READY_TRIES = 100;

/** The kernel's default for a message's time limit (seconds), where sysfs does not tell. */
const MESSAGE_TIMEOUT_S = 30;

/** Where a served device stands; what a later daemon must know to go on. */
export interface VduseState {
  readonly status: number;
  readonly driverFeatures: bigint;
  /** The queues that ran, and where they stopped. */
  readonly queues: readonly { readonly index: number; readonly position: QueuePosition }[];
}

export interface VduseDeviceEvents {
  log(text: string): void;
  /** The kernel gave the device up, or its descriptor failed. */
  failed(error: Error): void;
}

/**
 * One VDUSE device: answers the kernel's control messages and starts and stops its queues on the
 * engine. Messages are answered in the order they come, each after the engine has done its part.
 */
export class VduseDevice {
  readonly name: string;
  readonly #addon: Addon;
  readonly #fd: OwnedFd;
  readonly #device: PooledDevice;
  readonly #events: VduseDeviceEvents;
  readonly #kicks: OwnedFd[] = [];
  readonly #running = new Set<number>();
  /** Where the queues stand that were stopped since the last reset. */
  readonly #stopped = new Map<number, QueuePosition>();
  /** How many milliseconds an answer may take before the kernel gives the device up; 0: no limit. */
  readonly #patience: number;
  #watcher: FdWatcher | undefined;
  #work: Promise<void> = Promise.resolve();
  #status = 0;
  #driverFeatures = 0n;
  /** Raised by every reset: what was begun for an earlier life of the driver is void. */
  #epoch = 0;
  #closed = false;

  /** Sets up every queue; the device is served from `serve` or `resume` on. */
  constructor(
    addon: Addon,
    name: string,
    fd: OwnedFd,
    device: PooledDevice,
    queueSize: number,
    events: VduseDeviceEvents,
  ) {
    this.#addon = addon;
    this.name = name;
    this.#fd = fd;
    this.#device = device;
    this.#events = events;
    this.#patience = messageTimeout(name);
    this.#checkAlive();
    for (let index = 0; index < device.queues; index++) {
      // Attaching is refused until every queue was set up, whether the driver will use it or not.
      addon.vduseVqSetup(fd.fd, index, queueSize);
      this.#kicks.push(addon.eventfd(0));
    }
  }

  /** Begin to answer the kernel. */
  serve(): void {
    this.#watcher = this.#addon.watch(this.#fd.fd, () => this.#readable());
    this.#watcher.rearm();
  }

  /** Go on where an earlier daemon stopped after a drain, then serve. */
  async resume(state: VduseState): Promise<void> {
    this.#status = state.status;
    this.#driverFeatures = state.driverFeatures;
    for (const { index, position } of state.queues) {
      await this.#startQueue(index, this.#addon.vduseVqGetInfo(this.#fd.fd, index), position);
    }
    this.serve();
  }

  /** The driver has said DRIVER_OK and not reset since. */
  get driven(): boolean {
    return (this.#status & Status.DriverOk) !== 0;
  }

  /**
   * Stop answering, drain every queue and close the device. What the kernel asks from now on waits
   * for the next daemon. Resolves with what that one needs.
   */
  async leave(): Promise<VduseState> {
    this.#closed = true;
    this.#watcher?.close();
    await this.#work;
    const positions = await this.#device.stopQueues([...this.#running]);
    this.#running.clear();
    await this.#device.setMemory(undefined);
    await this.#device.remove();
    for (const kick of this.#kicks) kick.close();
    this.#fd.close();
    return {
      status: this.#status,
      driverFeatures: this.#driverFeatures,
      queues: [...positions].map(([index, position]) => ({ index, position })),
    };
  }

  #readable(): void {
    this.#work = this.#work.then(() => this.#answerAll()).catch((error) => this.#fail(error));
  }

  #fail(error: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher?.close();
    let reason = error;
    try {
      // It may have failed because the kernel gave the device up, which says more.
      this.#checkAlive();
    } catch (why) {
      reason = why as Error;
    }
    this.#events.failed(reason);
  }

  /** Throws when the kernel gave the device up. */
  #checkAlive(): void {
    try {
      this.#addon.vduseVqGetInfo(this.#fd.fd, 0);
    } catch (error) {
      throw (error as { code?: string }).code === 'EPERM' ? givenUp(this.name, error) : error;
    }
  }

  async #answerAll(): Promise<void> {
    const bytes = new Uint8Array(REQUEST_BYTES);
    let answered = 0;
    while (!this.#closed) {
      try {
        readSync(this.#fd.fd, bytes, 0, REQUEST_BYTES, null);
      } catch (error) {
        if ((error as { code?: string }).code === 'EAGAIN') break;
        throw error;
      }
      await this.#answer(parseMessage(bytes));
      answered++;
    }
    if (this.#closed) return;
    // Woken for nothing: an error event, for ever from now on, is how a device is given up.
    if (answered === 0) this.#checkAlive();
    this.#watcher?.rearm();
  }

  async #answer(message: VduseMessage): Promise<void> {
    switch (message.type) {
      case 'set-status':
        this.#respond(message.id, await this.#setStatus(message.status));
        break;
      case 'update-iotlb':
        // The range is always everything, and there is nothing to gain from a narrower one.
        this.#respond(message.id, await this.#timely('UPDATE_IOTLB', this.#dropMemory()));
        break;
      case 'get-vq-state':
        await this.#getState(message.id, message.index);
        break;
      case 'unknown':
        this.#events.log(`the kernel sent a message of unknown type ${message.number}: refused`);
        this.#respond(message.id, false);
        break;
    }
  }

  #respond(id: number, ok: boolean): void {
    writeSync(this.#fd.fd, buildResponse(id, ok));
  }

  /** GET_VQ_STATE asks where a stopped queue is; one that runs is stopped for it. */
  async #getState(id: number, index: number): Promise<void> {
    if (index >= this.#kicks.length) {
      this.#events.log(`the kernel asked for the state of queue ${index}, which there is not`);
      this.#respond(id, false);
      return;
    }
    if (!(await this.#timely('GET_VQ_STATE', this.#stop([index])))) {
      this.#respond(id, false);
      return;
    }
    const position = this.#stopped.get(index) ?? { avail: 0, used: 0 };
    const packed = (this.#driverFeatures & Feature.RingPacked) !== 0n;
    const words = packed
      ? ([
          position.avail >>> 15,
          position.avail & 0x7fff,
          position.used >>> 15,
          position.used & 0x7fff,
        ] as const)
      : ([position.avail, 0, 0, 0] as const);
    writeSync(this.#fd.fd, buildResponse(id, true, { index, words }));
  }

  async #setStatus(status: number): Promise<boolean> {
    const was = this.#status;
    if (status === 0) {
      this.#epoch++;
      if (!(await this.#timely('reset', this.#reset()))) return false;
      this.#status = 0;
      this.#driverFeatures = 0n;
      return true;
    }
    // FEATURES_OK is the last step a driver lets us refuse; its memory comes after it.
    if ((status & ~was & Status.FeaturesOk) !== 0 && this.#leftMemoryInTheWay()) return false;
    this.#status = status;
    const starts = (status & Status.DriverOk) !== 0 && (was & Status.DriverOk) === 0;
    if (starts) await this.#start();
    return true;
  }

  #leftMemoryInTheWay(): boolean {
    // A client of vhost_vdpa replaces what the last one left.
    if (boundDriver(this.name) !== 'virtio_vdpa') return false;
    if (!leftMemoryInTheWay(this.#addon, this.#fd.fd, this.name)) return false;
    this.#events.log(
      `refused to virtio_vdpa: memory of the virtual machine that used it last is in the way (vdpa dev del ${this.name}, end this daemon, then serve again)`,
    );
    return true;
  }

  /** DRIVER_OK: start every queue that is ready; those that come a little later follow. */
  async #start(): Promise<void> {
    this.#driverFeatures = this.#addon.vduseGetFeatures(this.#fd.fd);
    const late: number[] = [];
    for (let index = 0; index < this.#kicks.length; index++) {
      if (!(await this.#startIfReady(index))) late.push(index);
    }
    if (late.length > 0) void this.#startLate(late, this.#epoch);
  }

  /** Queues the driver does not use never become ready: looked for in the background, then let be. */
  async #startLate(indexes: number[], epoch: number): Promise<void> {
    let late = indexes;
    for (let i = 0; i < READY_TRIES && late.length > 0; i++) {
      await delay(1);
      if (epoch !== this.#epoch || this.#closed) return;
      const still: number[] = [];
      for (const index of late) if (!(await this.#startIfReady(index))) still.push(index);
      late = still;
    }
  }

  async #startIfReady(index: number): Promise<boolean> {
    const info = this.#addon.vduseVqGetInfo(this.#fd.fd, index);
    if (!info.ready) return false;
    try {
      await this.#startQueue(index, info, this.#initialPosition(info));
    } catch (error) {
      this.#events.log(`queue ${index} cannot be started: ${(error as Error).message}`);
    }
    return true;
  }

  /** The driver's own starting point: zero, but for a device that was migrated here. */
  #initialPosition(info: VduseVqInfo): QueuePosition {
    const [first, second, third, fourth] = info.state;
    if ((this.#driverFeatures & Feature.RingPacked) === 0n) return { avail: first, used: first };
    return { avail: (first << 15) | second, used: (third << 15) | fourth };
  }

  async #startQueue(index: number, info: VduseVqInfo, position: QueuePosition): Promise<void> {
    const features = this.#driverFeatures;
    const layout: QueueLayout = {
      size: info.num,
      desc: Number(info.desc),
      driver: Number(info.driver),
      device: Number(info.device),
      packed: (features & Feature.RingPacked) !== 0n,
      indirect: (features & Feature.IndirectDesc) !== 0n,
      eventIndex: (features & Feature.EventIndex) !== 0n,
      position,
    };
    const kick = this.#kicks[index]!;
    // A reset releases the kick descriptor, so it is given anew at every start.
    this.#addon.vduseVqSetKickFd(this.#fd.fd, index, kick.fd);
    this.#running.add(index);
    await this.#device.startQueue({
      index,
      layout,
      kickFd: kick.fd,
      signal: { fd: this.#fd.fd, index },
      features,
      // An interrupt for nothing is cheap, a lost one (the queue ran before) hangs the driver.
      signalOnce: true,
    });
  }

  async #stop(indexes: readonly number[]): Promise<void> {
    const stopped = await this.#device.stopQueues(indexes);
    for (const index of indexes) this.#running.delete(index);
    for (const [index, position] of stopped) this.#stopped.set(index, position);
  }

  /** Stop every queue, then let go of all memory: a rebind reuses the addresses for other pages. */
  async #reset(): Promise<void> {
    await this.#stop([...this.#running]);
    this.#stopped.clear();
    await this.#dropMemory();
  }

  async #dropMemory(): Promise<void> {
    await this.#device.setMemory(undefined);
  }

  /**
   * Wait for `work`, but answer before the kernel's patience ends: an unanswered message costs the
   * device. On false the I/O goes on and its memory stays mapped until it ends.
   */
  async #timely(what: string, work: Promise<void>): Promise<boolean> {
    if (this.#patience === 0) {
      await work;
      return true;
    }
    const timer = new AbortController();
    const late = delay(this.#patience * 0.75, false, { signal: timer.signal, ref: false });
    late.catch(() => {});
    const inTime = await Promise.race([work.then(() => true), late]);
    timer.abort();
    if (!inTime) {
      this.#events.log(
        `${what} refused: I/O has not ended within ${(this.#patience * 0.75) / 1000} s; its memory stays mapped until it ends`,
      );
      work.catch(() => {});
    }
    return inTime;
  }
}

/** The device's message time limit in milliseconds. */
function messageTimeout(name: string): number {
  try {
    const seconds = Number(readFileSync(`/sys/class/vduse/${name}/msg_timeout`, 'utf8'));
    if (Number.isFinite(seconds) && seconds >= 0) return seconds * 1000;
  } catch {
    // No sysfs (a container may hide it): the kernel's default.
  }
  return MESSAGE_TIMEOUT_S * 1000;
}
