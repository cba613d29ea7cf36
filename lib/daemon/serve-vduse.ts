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
import { Feature } from '../virtio/index.ts';
import { CAP_NET_ADMIN, hasCapability } from './capabilities.ts';
import { claimDevice, identityOf, saveState } from './claim.ts';
import type { DeviceIdentity } from './device-record.ts';
import { refuseIfHeld } from './devices.ts';
import type { HostedDevice } from './hosted-device.ts';
import {
  faultText,
  type PreparedDevice,
  type ServedDevice,
  type ServingEvents,
  type StopOutcome,
  undoAll,
} from './served.ts';
import { findStateDirectory, type StateDirectory } from './state-directory.ts';

/**
 * Ring features over VDUSE. INDIRECT_DESC is not among them: the guest is this kernel, whose indirect
 * tables cost more than they save (docs/architecture.md gives the measure).
 */
const RING_FEATURES = Feature.Version1 | Feature.AccessPlatform | Feature.EventIndex;

export interface VduseTransportOptions {
  /** Attach the device, as `vdpa dev add` does. */
  readonly attach?: boolean;
  /** Where to keep what a later server needs; default: see `findStateDirectory`. */
  readonly stateDir?: string;
  readonly ring?: 'split' | 'packed';
  /** Gives up an attachment that is still waiting for its node. */
  readonly signal?: AbortSignal;
}

/** Check all that can be checked, then open the device with `open`. */
export function prepareVduse(
  name: string,
  options: VduseTransportOptions,
  open: () => HostedDevice,
): PreparedDevice {
  checkName(name);
  const control = VduseControl.open(native);
  try {
    if (options.attach) requireNetAdmin(name);
    const states = findStateDirectory(options.stateDir);
    const device = open();
    return {
      name,
      device,
      start: (pool, events) => start({ name, device, control, states }, options, pool, events),
      discard: () => {
        control.close();
        device.discard();
      },
    };
  } catch (error) {
    control.close();
    throw error;
  }
}

interface Prepared {
  readonly name: string;
  readonly device: HostedDevice;
  readonly control: VduseControl;
  readonly states: StateDirectory | undefined;
}

interface Parts extends Prepared {
  readonly pooled: PooledDevice;
  readonly vduse: VduseDevice;
  readonly identity: DeviceIdentity;
}

/** A device served over VDUSE. */
class ServedVduse implements ServedDevice {
  readonly name: string;
  readonly transport = 'vduse';
  readonly device: HostedDevice;
  readonly resumed: boolean;
  readonly socket = undefined;
  readonly #parts: Parts;
  #stopped = false;
  #attachedHere = false;

  constructor(parts: Parts, resumed: boolean) {
    this.name = parts.name;
    this.device = parts.device;
    this.resumed = resumed;
    this.#parts = parts;
  }

  get node(): string | undefined {
    return deviceNode(this.name);
  }

  get next(): string | undefined {
    return isAttached(this.name) ? undefined : `vdpa dev add name ${this.name} mgmtdev vduse`;
  }

  counters(): QueueCounters[] {
    return this.#parts.pooled.counters();
  }

  async attach(signal: AbortSignal | undefined): Promise<void> {
    this.#attachedHere = true;
    await attachAndWait(native, this.name, { signal });
  }

  /**
   * A device attached here is detached first, while it is still served; one attached by others is
   * drained and left for the next server; one attached by nobody is destroyed.
   */
  async stop(force: boolean): Promise<StopOutcome> {
    if (this.#stopped) throw new Error(`${this.name}: stopped already`);
    if (this.#attachedHere && isAttached(this.name)) {
      if (!force) refuseIfHeld(this.name);
      await deleteDevice(native, this.name);
    }
    this.#stopped = true;
    const { vduse, device, control, states, identity } = this.#parts;
    const attached = isAttached(this.name);
    try {
      const state = await vduse.leave();
      await device.flush();
      if (!attached && this.#destroy(control)) return { device: 'gone' };
      if (states !== undefined) saveState(states, this.name, identity, state);
      return { device: 'left', resumable: states !== undefined };
    } finally {
      control.close();
      device.close();
    }
  }

  /** False when it was attached meanwhile. */
  #destroy(control: VduseControl): boolean {
    try {
      control.destroy(this.name);
      return true;
    } catch (error) {
      if (error instanceof VduseError && error.code === 'ERR_VDUSE_ATTACHED') return false;
      throw error;
    }
  }
}

async function start(
  prepared: Prepared,
  options: VduseTransportOptions,
  pool: ReactorPool,
  events: ServingEvents,
): Promise<ServedDevice> {
  const { name, device, control, states } = prepared;
  const log = (text: string) => events.log(`${name}: ${text}`);
  const ring = options.ring === 'packed' ? RING_FEATURES | Feature.RingPacked : RING_FEATURES;
  const identity = identityOf(device, device.features | ring);
  const undo: (() => unknown)[] = [];
  try {
    const { fd, state, created } = await claimDevice(name, device, identity, control, states);
    if (created) undo.push(() => control.destroy(name));
    undo.push(() => fd.close());
    const pooled = await pool.addDevice(
      {
        model: device.model,
        modelOptions: device.modelOptions,
        memory: VDUSE_MEMORY,
        memoryOptions: { fd: fd.fd },
        queues: device.queues,
      },
      { fault: (index, fault) => log(faultText(index, fault)), note: log },
    );
    undo.push(() => pooled.remove());
    const vduse = new VduseDevice(native, name, fd, pooled, device.queueSize, {
      log,
      failed: events.ended,
    });
    if (state === undefined) vduse.serve();
    else await vduse.resume(state);
    states?.remove(name);
    if (states === undefined) {
      log('no state directory: a later server cannot take the device over (give --state-dir)');
    }
    const served = new ServedVduse({ ...prepared, pooled, vduse, identity }, state !== undefined);
    if (options.attach) {
      undo.length = 0;
      undo.push(() => device.discard());
      undo.push(() => served.stop(true));
      await served.attach(options.signal);
    }
    return served;
  } catch (error) {
    await undoAll(undo, log);
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
