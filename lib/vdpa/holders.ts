import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { blockNumbers, stackedOn } from './sysfs.ts';

/**
 * Who uses a disk, in words ("mounted on /mnt", "open by dd (123)"), as far as this process may
 * know: mounts of every mount namespace it can see, swap, stacked devices, open descriptors.
 * An empty answer is no proof for a process without privilege.
 */
export function holdersOf(disk: string): string[] {
  const numbers = blockNumbers(disk);
  const names = new Set(numbers.values());
  const found = new Set<string>();
  for (const name of stackedOn(disk)) found.add(`used by /dev/${name}`);
  for (const line of linesOf('/proc/swaps').slice(1)) {
    const path = line.split(/\s/)[0] ?? '';
    if (names.has(path.replace('/dev/', ''))) found.add('used as swap');
  }
  const namespaces = new Set<string>();
  for (const pid of processes()) {
    for (const mount of mountsSeenBy(pid, namespaces)) {
      if (numbers.has(mount.device)) found.add(`mounted on ${mount.target}`);
    }
    if (opens(pid, names)) found.add(`open by ${commandOf(pid)} (${pid})`);
  }
  return [...found];
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
