import { readFileSync } from 'node:fs';
import type { Addon } from '../../native/index.ts';

/** Below it the kernel puts virtio_vdpa's rings, above the bounce buffer (VDUSE_IOVA_SIZE). */
const RINGS_END = 0x4800_0000n;

/** The kernel's default for the bounce buffer, where sysfs does not tell. */
const BOUNCE_BYTES = 64n << 20n;

/**
 * True when memory of an earlier vhost_vdpa client is where virtio_vdpa's rings will go, or covers
 * the whole bounce buffer. The kernel keeps the last client's memory until the next one maps its own
 * (or the device is destroyed), and adds virtio_vdpa's beside it: a look-up then finds the old memory,
 * ours for data and rings, and the kernel's own when it frees the rings, so that it frees other pages.
 */
export function leftMemoryInTheWay(addon: Addon, fd: number, name: string): boolean {
  try {
    addon.vduseIotlbGetFd(fd, bounceBytes(name) - 1n, RINGS_END - 1n).fd.close();
    return true;
  } catch (error) {
    if ((error as { code?: string }).code === 'EINVAL') return false;
    throw error;
  }
}

function bounceBytes(name: string): bigint {
  try {
    return BigInt(readFileSync(`/sys/class/vduse/${name}/bounce_size`, 'utf8').trim());
  } catch {
    return BOUNCE_BYTES;
  }
}
