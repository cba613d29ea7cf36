import { native } from '../native/index.ts';
import { listDeviceNodes, noDevice, VduseControl } from '../transport/vduse/index.ts';
import {
  attachAndWait,
  boundDriver,
  deleteDevice,
  deviceNode,
  holdersOf,
  isAttached,
  VdpaError,
} from '../vdpa/index.ts';
import { HeldError } from './errors.ts';

/** A VDUSE device of this host. */
export interface ListedDevice {
  readonly name: string;
  readonly attached: boolean;
  /** The vDPA driver bound to it: virtio_vdpa (containers), vhost_vdpa (virtual machines). */
  readonly driver: string | undefined;
  /** /dev/vdX or /dev/vhost-vdpa-N. */
  readonly node: string | undefined;
}

/** All VDUSE devices, served or not; empty where the kernel has none. */
export function listDevices(): ListedDevice[] {
  return listDeviceNodes()
    .sort()
    .map((name) => ({
      name,
      attached: isAttached(name),
      driver: boundDriver(name),
      node: deviceNode(name),
    }));
}

/** Attach a served device; resolves with its node. */
export async function attach(name: string): Promise<string> {
  requireDevice(name);
  if (isAttached(name)) {
    throw new VdpaError(
      'ERR_VDUSE_VDPA',
      `attaching ${name}: it is attached already (see "vduse list")`,
    );
  }
  return await attachAndWait(native, name);
}

/** Detach a device. Throws a HeldError that says who uses it, unless `force`. */
export async function detach(name: string, force = false): Promise<void> {
  requireDevice(name);
  if (!isAttached(name)) {
    throw new VdpaError(
      'ERR_VDUSE_VDPA',
      `detaching ${name}: it is not attached (see "vduse list")`,
    );
  }
  if (!force) refuseIfHeld(name);
  await deleteDevice(native, name);
}

/** Remove a device that is neither served nor attached. */
export function destroy(name: string): void {
  const control = VduseControl.open(native);
  try {
    control.destroy(name);
  } finally {
    control.close();
  }
}

/** vDPA devices of other kinds are none of our business, even under a name that fits. */
function requireDevice(name: string): void {
  if (!listDeviceNodes().includes(name)) throw noDevice(name);
}

/** Throws a HeldError while the device's node is mounted or otherwise in use, as far as can be known. */
export function refuseIfHeld(name: string): void {
  const node = deviceNode(name);
  const holders = node === undefined ? [] : holdersOf(node);
  if (holders.length === 0) return;
  throw new HeldError(
    `${name}: ${node} is in use: ${holders.join(', ')} (end that use first; a second signal to its server, or vduse detach --force, detaches all the same)`,
  );
}
