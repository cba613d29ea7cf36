import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { basename } from 'node:path';

const DEVICES = '/sys/bus/vdpa/devices';

/** The driver bound to a vDPA device, or undefined (none, or no such device). */
export function boundDriver(name: string): string | undefined {
  try {
    return basename(readlinkSync(`${DEVICES}/${name}/driver`));
  } catch {
    return undefined;
  }
}

/** True while a vDPA device of that name exists: it is attached. */
export function isAttached(name: string): boolean {
  return existsSync(`${DEVICES}/${name}`);
}

/**
 * The node through which the attached device is used: `/dev/vdX` (virtio_vdpa) or
 * `/dev/vhost-vdpa-N` (vhost_vdpa); undefined until there is one.
 */
export function deviceNode(name: string): string | undefined {
  const node = blockNode(name) ?? vhostNode(name);
  return node !== undefined && existsSync(node) ? node : undefined;
}

/** The kernel's name of the disk (vda), or undefined. */
export function blockName(name: string): string | undefined {
  for (const entry of entriesOf(`${DEVICES}/${name}`)) {
    if (!/^virtio\d+$/.test(entry)) continue;
    const disk = entriesOf(`${DEVICES}/${name}/${entry}/block`)[0];
    if (disk !== undefined) return disk;
  }
  return undefined;
}

/** "major:minor" of the disk and its partitions, as /proc/…/mountinfo names them. */
export function blockNumbers(disk: string): Map<string, string> {
  const numbers = new Map<string, string>();
  const add = (path: string, name: string) => {
    try {
      numbers.set(readFileSync(`${path}/dev`, 'utf8').trim(), name);
    } catch {
      // A partition that went away meanwhile.
    }
  };
  add(`/sys/block/${disk}`, disk);
  for (const entry of entriesOf(`/sys/block/${disk}`)) {
    if (entry.startsWith(disk)) add(`/sys/block/${disk}/${entry}`, entry);
  }
  return numbers;
}

/** Names of block devices stacked on the disk or its partitions (device mapper, md). */
export function stackedOn(disk: string): string[] {
  return [
    ...entriesOf(`/sys/block/${disk}/holders`),
    ...entriesOf(`/sys/block/${disk}`)
      .filter((entry) => entry.startsWith(disk))
      .flatMap((entry) => entriesOf(`/sys/block/${disk}/${entry}/holders`)),
  ];
}

/** Names of loop devices over one of the disks or partitions, which the kernel lists nowhere else. */
export function loopsOn(names: ReadonlySet<string>): string[] {
  return entriesOf('/sys/block').filter((entry) => {
    if (!/^loop\d+$/.test(entry)) return false;
    try {
      const file = readFileSync(`/sys/block/${entry}/loop/backing_file`, 'utf8').trim();
      return file.startsWith('/dev/') && names.has(file.slice('/dev/'.length));
    } catch {
      // Not in use.
      return false;
    }
  });
}

function blockNode(name: string): string | undefined {
  const disk = blockName(name);
  return disk === undefined ? undefined : `/dev/${disk}`;
}

function vhostNode(name: string): string | undefined {
  const entry = entriesOf(`${DEVICES}/${name}`).find((e) => /^vhost-vdpa-\d+$/.test(e));
  return entry === undefined ? undefined : `/dev/${entry}`;
}

function entriesOf(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
