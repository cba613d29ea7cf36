import { closeSync, constants, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { basename } from 'node:path';
import { blockNumbers, loopsOn, stackedOn } from './sysfs.ts';

/** udev looks at each new disk for an instant; it needs no warning. */
const UDEV = /^(\(udev-worker\)|systemd-udevd)$/;

/**
 * Who uses a node (/dev/vdX, /dev/vhost-vdpa-N), in words ("mounted on /mnt", "open by dd (123)"), as
 * far as this process may know: mounts of every mount namespace it can see, swap, stacked devices,
 * open descriptors. An empty answer is no proof for a process without privilege.
 */
export function holdersOf(node: string): string[] {
  const disk = basename(node);
  const numbers = blockNumbers(disk);
  const names = new Set([disk, ...numbers.values()]);
  const found = new Set<string>();
  for (const name of [...stackedOn(disk), ...loopsOn(names)]) found.add(`used by /dev/${name}`);
  for (const line of linesOf('/proc/swaps').slice(1)) {
    const path = line.split(/\s/)[0] ?? '';
    if (names.has(path.replace('/dev/', ''))) found.add('used as swap');
  }
  const namespaces = new Set<string>();
  for (const pid of processes()) {
    for (const mount of mountsSeenBy(pid, namespaces)) {
      if (numbers.has(mount.device)) found.add(`mounted on ${decodeOctal(mount.target)}`);
    }
    if (!opens(pid, names)) continue;
    const command = commandOf(pid);
    if (!UDEV.test(command)) found.add(`open by ${command} (${pid})`);
  }
  if (found.size === 0 && numbers.size > 0 && isClaimed(node)) {
    found.add(
      'claimed by the kernel (a file system mounted where this process cannot look, or the like)',
    );
  }
  return [...found];
}

/** An exclusive open fails while a file system or a stacked device has the disk: open(2). */
function isClaimed(node: string): boolean {
  try {
    closeSync(openSync(node, constants.O_RDONLY | constants.O_EXCL | constants.O_NONBLOCK));
    return false;
  } catch (error) {
    return (error as { code?: string }).code === 'EBUSY';
  }
}

/** Blanks and backslashes of a path are octal in mountinfo: proc(5). */
function decodeOctal(path: string): string {
  return path.replaceAll(/\\([0-7]{3})/g, (_, digits) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** Mounts in the namespace of `pid`, once a namespace. */
function* mountsSeenBy(pid: string, seen: Set<string>) {
  let namespace: string;
  try {
    namespace = readlinkSync(`/proc/${pid}/ns/mnt`);
  } catch {
    // Another user's process: its mount table may be readable all the same.
    namespace = `of ${pid}`;
  }
  if (seen.has(namespace)) return;
  seen.add(namespace);
  for (const line of linesOf(`/proc/${pid}/mountinfo`)) {
    // proc(5): mount id, parent id, major:minor, root, mount point, …
    const [, , device, , target] = line.split(' ');
    if (device !== undefined && target !== undefined) yield { device, target };
  }
}

function opens(pid: string, names: ReadonlySet<string>): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        const path = readlinkSync(`/proc/${pid}/fd/${fd}`);
        return path.startsWith('/dev/') && names.has(path.slice('/dev/'.length));
      } catch {
        return false;
      }
    });
  } catch {
    return false;
  }
}

function processes(): string[] {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name));
}

function commandOf(pid: string): string {
  return linesOf(`/proc/${pid}/comm`)[0] ?? '?';
}

function linesOf(path: string): string[] {
  try {
    return readFileSync(path, 'utf8').split('\n');
  } catch {
    return [];
  }
}
