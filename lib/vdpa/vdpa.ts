import { setTimeout as delay } from 'node:timers/promises';
import type { Addon, SystemError, VdpaDevice } from '../native/index.ts';
import { boundDriver, deviceNode, isAttached } from './sysfs.ts';

/** How long an attached device may take to become usable: the kernel's own message time limit. */
const NODE_MS = 30_000;
const NODE_STEP_MS = 20;

/** A vDPA device that cannot be attached, used or detached; says what failed, why, what to do. */
export class VdpaError extends Error {
  readonly code: 'ERR_VDUSE_VDPA' | 'ERR_VDUSE_VDPA_PERMISSION' | 'ERR_VDUSE_NO_NODE';

  constructor(code: VdpaError['code'], message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'VdpaError';
    this.code = code;
  }
}

/**
 * What `vdpa dev add name NAME mgmtdev vduse` does. The device's daemon must be answering: the
 * kernel calls back into it before this resolves.
 */
export async function addDevice(addon: Addon, name: string): Promise<void> {
  try {
    await addon.vdpaDeviceAdd(name, 'vduse');
  } catch (error) {
    throw explain(
      error as SystemError,
      `attaching ${name}`,
      `vdpa dev add name ${name} mgmtdev vduse`,
    );
  }
}

/** What `vdpa dev del NAME` does; the daemon must be answering. */
export async function deleteDevice(addon: Addon, name: string): Promise<void> {
  try {
    await addon.vdpaDeviceDelete(name);
  } catch (error) {
    throw explain(error as SystemError, `detaching ${name}`, `vdpa dev del ${name}`);
  }
}

/** The vDPA devices of this host; empty where the kernel has no vDPA. */
export async function listDevices(addon: Addon): Promise<VdpaDevice[]> {
  try {
    return await addon.vdpaDeviceList();
  } catch (error) {
    if ((error as SystemError).code === 'ENOENT') return [];
    throw error;
  }
}

/**
 * Attach and wait for the node: the kernel may answer the request with success although no driver
 * took the device, so only the node counts. Resolves with its path.
 */
export async function attachAndWait(
  addon: Addon,
  name: string,
  { waitMs = NODE_MS, signal }: { waitMs?: number; signal?: AbortSignal | undefined } = {},
): Promise<string> {
  let failure: Error | undefined;
  const adding = addDevice(addon, name).catch((error: Error) => {
    failure = error;
  });
  const end = Date.now() + waitMs;
  while (Date.now() < end) {
    const node = deviceNode(name);
    if (node !== undefined) {
      await Promise.race([adding, delay(waitMs, undefined, { ref: false })]);
      return node;
    }
    if (failure !== undefined) throw failure;
    signal?.throwIfAborted();
    await delay(NODE_STEP_MS);
  }
  throw new VdpaError(
    'ERR_VDUSE_NO_NODE',
    `attaching ${name}: no device node after ${waitMs / 1000} s, ${whyNoNode(name)}`,
  );
}

function whyNoNode(name: string): string {
  const driver = boundDriver(name);
  if (driver === 'virtio_vdpa') return `driver bound: ${driver} (modprobe virtio_blk; see dmesg)`;
  if (driver !== undefined) return `driver bound: ${driver} (see dmesg)`;
  const what = isAttached(name) ? 'no driver is bound' : 'the device is not there';
  return `${what} (modprobe -a virtio_vdpa virtio_blk, or bind one by hand)`;
}

function explain(error: SystemError, what: string, command: string): Error {
  if (error.code === 'EPERM' || error.code === 'EACCES') {
    return new VdpaError(
      'ERR_VDUSE_VDPA_PERMISSION',
      `${what}: needs CAP_NET_ADMIN in the initial network namespace (run as root: ${command})`,
      { cause: error },
    );
  }
  const why = error.extack ?? error.message;
  return new VdpaError(
    'ERR_VDUSE_VDPA',
    `${what}: ${why} ("vduse doctor" checks modules and permissions)`,
    {
      cause: error,
    },
  );
}
