import { native, type OwnedFd } from '../native/index.ts';
import {
  openDevice,
  type VduseControl,
  VduseError,
  type VduseState,
} from '../transport/vduse/index.ts';
import { isAttached } from '../vdpa/index.ts';
import { Feature } from '../virtio/index.ts';
import { type DeviceIdentity, firstDifference, readRecord, writeRecord } from './device-record.ts';
import type { HostedDevice } from './hosted-device.ts';
import type { StateDirectory } from './state-directory.ts';

/** A device of ours in the kernel. */
export interface ClaimedDevice {
  readonly fd: OwnedFd;
  /** It was made now. */
  readonly created: boolean;
  /** Where the earlier server stopped; undefined for a new device. */
  readonly state: VduseState | undefined;
}

/** Create the device, or take over the one an earlier server left. */
export async function claimDevice(
  name: string,
  device: HostedDevice,
  identity: DeviceIdentity,
  control: VduseControl,
  states: StateDirectory | undefined,
): Promise<ClaimedDevice> {
  const created = control.create({
    name,
    vendorId: 0,
    deviceId: device.virtioId,
    features: BigInt(`0x${identity.features}`),
    vqNum: device.queues,
    vqAlign: native.pageSize(),
    config: device.config(),
  });
  if (created) {
    try {
      return { created, fd: await openDevice(native, name, true), state: undefined };
    } catch (error) {
      control.destroy(name);
      throw error;
    }
  }
  const fd = await openDevice(native, name, false);
  try {
    return { created, fd, state: adoptableState(name, states, identity) };
  } catch (error) {
    fd.close();
    throw error;
  }
}

/** What an earlier server left of this device; throws a VduseError where this one cannot go on. */
function adoptableState(
  name: string,
  states: StateDirectory | undefined,
  identity: DeviceIdentity,
): VduseState {
  const remedy = isAttached(name)
    ? `serve it as before, or remove it: vdpa dev del ${name}; vduse destroy ${name}`
    : `remove it: vduse destroy ${name} (if it is attached, first: vdpa dev del ${name})`;
  const record = states === undefined ? undefined : readRecord(states, name);
  if (record === undefined) {
    throw new VduseError(
      'ERR_VDUSE_LEFT_BEHIND',
      `${name}: left behind by an earlier server, with no record of where it stood (${remedy})`,
    );
  }
  const difference = firstDifference(record.identity, identity);
  if (difference !== undefined) {
    throw new VduseError(
      'ERR_VDUSE_LEFT_BEHIND',
      `${name}: left behind by a server with other options: ${difference} (${remedy})`,
    );
  }
  // Detached since: there is no driver to go on with.
  if (!isAttached(name)) return { status: 0, driverFeatures: 0n, queues: [] };
  return {
    status: record.status,
    driverFeatures: BigInt(`0x${record.driverFeatures}`),
    queues: record.queues,
  };
}

export function saveState(
  states: StateDirectory,
  name: string,
  identity: DeviceIdentity,
  state: VduseState,
): void {
  writeRecord(states, {
    name,
    identity,
    status: state.status,
    driverFeatures: state.driverFeatures.toString(16),
    queues: state.queues,
  });
}

/**
 * What must be the same for a later server to go on with the device; `features` are all those offered.
 * What an operator can change comes first: the first difference is the one told.
 */
export function identityOf(device: HostedDevice, features: bigint): DeviceIdentity {
  return {
    image: device.path,
    inode: device.inode,
    capacity: device.capacity,
    queues: device.queues,
    queueSize: device.queueSize,
    ring: (features & Feature.RingPacked) === 0n ? 'split' : 'packed',
    ...device.identity,
    deviceId: device.virtioId,
    features: features.toString(16),
    config: Buffer.from(device.config()).toString('hex'),
  };
}
