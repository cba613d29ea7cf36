import { native } from '../native/index.ts';
import { listDeviceNodes, VduseControl } from '../transport/vduse/index.ts';
import {
  attachAndWait,
  blockName,
  boundDriver,
  deleteDevice,
  deviceNode,
  holdersOf,
  isAttached,
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
export function attach(name: string): Promise<string> {
  return attachAndWait(native, name);
}

/** Detach a device. Throws a HeldError that says who uses it, unless `force`. */
export async function detach(name: string, force = false): Promise<void> {
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

/** Throws a HeldError while the device's disk is mounted or otherwise in use, as far as can be known. */
export function refuseIfHeld(name: string): void {
  const disk = blockName(name);
  const holders = disk === undefined ? [] : holdersOf(disk);
  if (holders.length === 0) return;
  throw new HeldError(
    `${name}: /dev/${disk} is in use: ${holders.join(', ')} (end that use, or ask again to detach all the same)`,
  );
}
