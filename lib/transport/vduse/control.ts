import { constants, openSync, readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Addon, OwnedFd, VduseDeviceConfig } from '../../native/index.ts';
import { noDevice, VduseError } from './errors.ts';

export const CONTROL = '/dev/vduse/control';
const DEVICE_DIRECTORY = '/dev/vduse';

/** How long udev may take to give a new node its group and mode. */
const UDEV_MS = 5000;
const UDEV_STEP_MS = 10;

const codeOf = (error: unknown) => (error as { code?: string }).code;

/** 1–63 of [A-Za-z0-9._-], first a letter or digit, not `control` (a node of that name exists). */
export function checkName(name: string): void {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name) || name === 'control') {
    throw new VduseError(
      'ERR_VDUSE_NAME',
      `device name ${JSON.stringify(name)}: not 1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit, or "control" (give another with --name)`,
    );
  }
}

/** Names of the VDUSE devices of this host, served or not. */
export function listDeviceNodes(): string[] {
  try {
    return readdirSync(DEVICE_DIRECTORY).filter((name) => name !== 'control');
  } catch {
    return [];
  }
}

/** /dev/vduse/control at API version 0, which every kernel with VDUSE speaks. */
export class VduseControl {
  readonly #addon: Addon;
  readonly #fd: OwnedFd;

  private constructor(addon: Addon, fd: OwnedFd) {
    this.#addon = addon;
    this.#fd = fd;
  }

  /** Throws a VduseError that says whether the kernel, the module or the permission is missing. */
  static open(addon: Addon): VduseControl {
    let fd: OwnedFd;
    try {
      fd = addon.adopt(openSync(CONTROL, constants.O_RDWR));
    } catch (error) {
      const code = codeOf(error);
      if (code === 'EACCES' || code === 'EPERM') {
        throw new VduseError(
          'ERR_VDUSE_PERMISSION',
          `${CONTROL}: permission denied (install the udev rule share/60-vduse.rules and join its group, or run as root)`,
          { cause: error },
        );
      }
      throw new VduseError(
        'ERR_VDUSE_UNAVAILABLE',
        `${CONTROL}: ${code === 'ENOENT' ? 'no VDUSE in this kernel, or its module is not loaded' : (error as Error).message} (modprobe vduse; "vduse doctor" tells more)`,
        { cause: error },
      );
    }
    try {
      // Without it a 7.x kernel takes the newest version, whose configuration has other fields.
      addon.vduseSetApiVersion(fd.fd, 0n);
    } catch (error) {
      fd.close();
      throw error;
    }
    return new VduseControl(addon, fd);
  }

  /** CREATE_DEV; false when the name is taken. */
  create(config: VduseDeviceConfig): boolean {
    try {
      this.#addon.vduseCreateDevice(this.#fd.fd, config);
      return true;
    } catch (error) {
      const code = codeOf(error);
      if (code === 'EEXIST') return false;
      if (code === 'EPERM' || code === 'EACCES') {
        throw new VduseError(
          'ERR_VDUSE_PERMISSION',
          `creating ${config.name}: the kernel refuses it to this user (run as root, or see "vduse doctor")`,
          { cause: error },
        );
      }
      if (code === 'EINVAL') {
        throw new VduseError(
          'ERR_VDUSE_DEVICE_ID',
          `creating ${config.name}: the kernel refuses a VDUSE device of virtio id ${config.deviceId} with this configuration (stock kernels allow block and network devices only: serve it over a socket with --socket-path, or run a kernel that allows this id)`,
          { cause: error },
        );
      }
      throw error;
    }
  }

  /** DESTROY_DEV. */
  destroy(name: string): void {
    try {
      this.#addon.vduseDestroyDevice(this.#fd.fd, name);
    } catch (error) {
      const code = codeOf(error);
      if (code === 'EINVAL' || code === 'ENOENT') {
        throw noDevice(name, error);
      }
      if (code === 'EBUSY') {
        throw new VduseError(
          'ERR_VDUSE_ATTACHED',
          `${name}: still attached or served ("vduse detach ${name}" first, and stop its daemon)`,
          { cause: error },
        );
      }
      throw error;
    }
  }

  close(): void {
    this.#fd.close();
  }
}

/**
 * Open /dev/vduse/NAME. `patient`: the device was created just now, so wait until udev has made the
 * node and set its mode.
 */
export async function openDevice(addon: Addon, name: string, patient: boolean): Promise<OwnedFd> {
  const path = `${DEVICE_DIRECTORY}/${name}`;
  const end = Date.now() + (patient ? UDEV_MS : 0);
  for (;;) {
    try {
      return addon.adopt(openSync(path, constants.O_RDWR | constants.O_NONBLOCK));
    } catch (error) {
      const code = codeOf(error);
      if (code === 'EBUSY') {
        throw new VduseError(
          'ERR_VDUSE_NAME_TAKEN',
          `${name}: a running daemon serves a device of that name (give another with --name, or stop it)`,
          { cause: error },
        );
      }
      const waits = code === 'ENOENT' || code === 'EACCES' || code === 'EPERM';
      if (waits && Date.now() < end) {
        await delay(UDEV_STEP_MS);
        continue;
      }
      if (code === 'EACCES' || code === 'EPERM') {
        throw new VduseError(
          'ERR_VDUSE_PERMISSION',
          `${path}: permission denied (install the udev rule share/60-vduse.rules and join its group, or run as root)`,
          { cause: error },
        );
      }
      throw error;
    }
  }
}
