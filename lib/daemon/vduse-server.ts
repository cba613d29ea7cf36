import { fdatasync } from 'node:fs';
import { promisify } from 'node:util';
import { native } from '../native/index.ts';
import type { PooledDevice, QueueCounters, ReactorPool } from '../reactor/index.ts';
import {
  checkName,
  VDUSE_MEMORY,
  VduseControl,
  VduseDevice,
  VduseError,
} from '../transport/vduse/index.ts';
import { attachAndWait, deleteDevice, deviceNode, isAttached, VdpaError } from '../vdpa/index.ts';
import { BLOCK_MODEL } from './block-model.ts';
import { CAP_NET_ADMIN, hasCapability } from './capabilities.ts';
import { claimDevice, identityOf, saveState } from './claim.ts';
import type { DeviceIdentity } from './device-record.ts';
import { refuseIfHeld } from './devices.ts';
import { checkDiskOptions, type Disk, type DiskOptions, openDisk } from './disk.ts';
import { type EngineOptions, startEngine } from './engine.ts';
import { findStateDirectory, type StateDirectory } from './state-directory.ts';

export interface VduseServerOptions extends DiskOptions, EngineOptions {
  /** Default: the image's base name. */
  readonly name?: string;
  /** Attach the device, as `vdpa dev add` does. */
  readonly attach?: boolean;
  readonly stateDir?: string;
  /** Gives up an attachment that is still waiting for its node. */
  readonly signal?: AbortSignal;
  /** Told of what an operator should know: warnings, faults, and why. One line each. */
  readonly log?: (text: string) => void;
}

/** How a server ended. */
export type StopOutcome =
  /** The device is gone. */
  | { readonly device: 'destroyed' }
  /** It is still attached and waits for the next daemon; `resumable` where that one can go on. */
  | { readonly device: 'left'; readonly resumable: boolean };

/** A disk served over VDUSE. */
export class VduseServer {
  readonly name: string;
  readonly transport = 'vduse';
  readonly capacity: number;
  readonly blockSize: number;
  readonly queues: number;
  readonly readOnly: boolean;
  /** `io_uring` or `pool`. */
  readonly engine: string;
  readonly engineNote: string | undefined;
  /** The device was taken over from an earlier daemon. */
  readonly resumed: boolean;
  /** Settles when serving ends by itself: the kernel gave the device up, or a thread died. */
  readonly failed: Promise<Error>;
  readonly #parts: Parts;
  #stopped = false;
  #attachedHere = false;

  constructor(parts: Parts, resumed: boolean, failed: Promise<Error>) {
    const { disk, pool } = parts;
    this.name = parts.name;
    this.capacity = disk.block.capacity;
    this.blockSize = disk.block.blockSize;
    this.queues = disk.block.queues;
    this.readOnly = disk.block.readOnly;
    this.engine = pool.engine.name;
    this.engineNote = pool.engine.note;
    this.resumed = resumed;
    this.failed = failed;
    this.#parts = parts;
  }

  /** The node through which it is used (/dev/vdX), once attached. */
  get node(): string | undefined {
    return deviceNode(this.name);
  }

  /** Restart under the driver is possible: there is a place to keep the state. */
  get restartable(): boolean {
    return this.#parts.states !== undefined;
  }

  /** True when this server attached the device itself. */
  get attachedHere(): boolean {
    return this.#attachedHere;
  }

  counters(): QueueCounters[] {
    return this.#parts.pooled.counters();
  }

  /** Attach it, as `vdpa dev add` does; resolves with the node. */
  async attach(signal?: AbortSignal): Promise<string> {
    this.#attachedHere = true;
    return await attachAndWait(native, this.name, { signal });
  }

  /**
   * End. A device attached by this server is detached first, while it is still served; if somebody
   * uses it, a HeldError says who, unless `force`. One attached by others is drained and left for
   * the next server; one attached by nobody is destroyed.
   */
  async stop(force = false): Promise<StopOutcome> {
    if (this.#stopped) throw new Error(`${this.name}: stopped already`);
    if (this.#attachedHere && isAttached(this.name)) {
      if (!force) refuseIfHeld(this.name);
      await deleteDevice(native, this.name);
    }
    this.#stopped = true;
    const { device, pool, disk, control, states, identity } = this.#parts;
    const attached = isAttached(this.name);
    const state = await device.leave();
    await pool.close();
    if (!disk.block.readOnly) await promisify(fdatasync)(disk.image.fd.fd);
    try {
      if (!attached && this.#destroyed(control)) return { device: 'destroyed' };
      if (states !== undefined) saveState(states, this.name, identity, state);
      return { device: 'left', resumable: states !== undefined };
    } finally {
      control.close();
      disk.image.close();
    }
  }

  /** Destroy the device; false when it was attached meanwhile. */
  #destroyed(control: VduseControl): boolean {
    try {
      control.destroy(this.name);
      return true;
    } catch (error) {
      if (error instanceof VduseError && error.code === 'ERR_VDUSE_ATTACHED') return false;
      throw error;
    }
  }
}

interface Parts {
  readonly name: string;
  readonly disk: Disk;
  readonly pool: ReactorPool;
  readonly pooled: PooledDevice;
  readonly device: VduseDevice;
  readonly control: VduseControl;
  readonly states: StateDirectory | undefined;
  readonly identity: DeviceIdentity;
}

/**
 * Serve an image over VDUSE. Resolves when the device answers the kernel (and, with `attach`, when
 * its node is there). On an error nothing is left behind.
 */
export async function serveVduse(options: VduseServerOptions): Promise<VduseServer> {
  const log = options.log ?? (() => {});
  checkDiskOptions(options);
  const name = options.name ?? baseName(options.image);
  checkName(name);
  const undo: (() => unknown)[] = [];
  try {
    const control = VduseControl.open(native);
    undo.push(() => control.close());
    if (options.attach) requireNetAdmin(name);
    const states = findStateDirectory(options.stateDir);
    const disk = openDisk(options);
    undo.push(() => disk.image.discard());
    for (const warning of disk.image.warnings) log(warning);
    let fail: (error: Error) => void = () => {};
    const failed = new Promise<Error>((resolve) => {
      fail = resolve;
    });
    const pool = await startEngine(disk.block.queues, options, fail);
    undo.push(() => pool.close());
    const identity = identityOf(disk);
    const { fd, state, created } = await claimDevice(name, disk, control, states, identity);
    if (created) undo.push(() => control.destroy(name));
    undo.push(() => fd.close());
    const pooled = await pool.addDevice(
      {
        model: BLOCK_MODEL,
        modelOptions: disk.model,
        memory: VDUSE_MEMORY,
        memoryOptions: { fd: fd.fd },
        queues: disk.block.queues,
      },
      {
        fault: (index, fault) =>
          log(
            `${name}: queue ${index} stopped: ${fault.reason} (head ${fault.head}, 0x${fault.detail.toString(16)}): the driver must reset the device`,
          ),
        note: (text) => log(`${name}: ${text}`),
      },
    );
    undo.push(() => pooled.remove());
    const device = new VduseDevice(native, name, fd, pooled, disk.block.queueSize, {
      log: (text) => log(`${name}: ${text}`),
      failed: fail,
    });
    const server = new VduseServer(
      { name, disk, pool, pooled, device, control, states, identity },
      state !== undefined,
      failed,
    );
    if (state === undefined) device.serve();
    else await device.resume(state);
    states?.remove(name);
    if (states === undefined) {
      log(
        `${name}: no state directory: the device cannot be taken over by a later server (give --state-dir)`,
      );
    }
    if (options.attach) {
      undo.length = 0;
      undo.push(() => disk.image.discard());
      undo.push(() => server.stop(true));
      await server.attach(options.signal);
    }
    return server;
  } catch (error) {
    for (const step of undo.reverse()) {
      // The first failure is the one to tell; a step back that fails too must not hide it.
      await Promise.resolve()
        .then(step)
        .catch((second: Error) => log(`${name}: while giving up: ${second.message}`));
    }
    throw error;
  }
}

/** Fail before anything is made where attaching is bound to fail. */
function requireNetAdmin(name: string): void {
  if (hasCapability(CAP_NET_ADMIN)) return;
  throw new VdpaError(
    'ERR_VDUSE_VDPA_PERMISSION',
    `attaching ${name}: needs CAP_NET_ADMIN in the initial network namespace (run as root, or leave out --attach and let root run: vdpa dev add name ${name} mgmtdev vduse)`,
  );
}

/** The image's base name, as a device name. */
function baseName(image: string): string {
  return image.slice(image.lastIndexOf('/') + 1);
}
