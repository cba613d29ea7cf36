import { StateError } from './errors.ts';
import type { StateDirectory } from './state-directory.ts';

/** Raised whenever the record's fields change their meaning. */
const VERSION = 1;

/** What must be equal for a daemon to go on with the device of an earlier one. */
export interface DeviceIdentity {
  /** The image's real path. */
  readonly image: string;
  /** Its device and inode: the same file, not only the same name. */
  readonly inode: string;
  readonly capacity: number;
  readonly queues: number;
  readonly queueSize: number;
  readonly ring: 'split' | 'packed';
  readonly deviceId: number;
  /** Offered feature bits, in hexadecimal. */
  readonly features: string;
  /** The configuration space, in hexadecimal. */
  readonly config: string;
  /** The device's own: its serial, … */
  readonly [property: string]: string | number;
}

/** Where a drained device stands: what the kernel does not tell a daemon that comes later. */
export interface DeviceRecord {
  readonly version: typeof VERSION;
  readonly name: string;
  readonly identity: DeviceIdentity;
  readonly status: number;
  /** In hexadecimal. */
  readonly driverFeatures: string;
  readonly queues: readonly {
    readonly index: number;
    readonly position: { readonly avail: number; readonly used: number };
  }[];
}

export function writeRecord(
  directory: StateDirectory,
  record: Omit<DeviceRecord, 'version'>,
): void {
  directory.write(record.name, { version: VERSION, ...record } satisfies DeviceRecord);
}

/** The record of a device, checked; undefined where there is none. Throws a StateError. */
export function readRecord(directory: StateDirectory, name: string): DeviceRecord | undefined {
  const content = directory.read(name);
  if (content === undefined) return undefined;
  const wrong = whatIsWrong(content as Partial<DeviceRecord>, name);
  if (wrong !== undefined) {
    throw new StateError(`state file ${directory.file(name)}: ${wrong} (remove it)`);
  }
  return content as DeviceRecord;
}

/** The first difference in words ("queue size 256, now 128"), or undefined when they are the same. */
export function firstDifference(was: DeviceIdentity, is: DeviceIdentity): string | undefined {
  for (const key of Object.keys(is)) {
    if (was[key] === is[key]) continue;
    const words = key.replaceAll(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
    return `${words} ${was[key]}, now ${is[key]}`;
  }
  return undefined;
}

function whatIsWrong(record: Partial<DeviceRecord>, name: string): string | undefined {
  if (typeof record !== 'object' || record === null) return 'not a record';
  if (record.version !== VERSION) return `version ${record.version}, not ${VERSION}`;
  if (record.name !== name) return `of device ${record.name}`;
  if (typeof record.identity !== 'object' || record.identity === null) return 'no identity';
  if (!isInteger(record.status, 0xff)) return 'no status';
  if (
    typeof record.driverFeatures !== 'string' ||
    !/^[0-9a-f]{1,16}$/.test(record.driverFeatures)
  ) {
    return 'no driver features';
  }
  const { queues } = record;
  if (!Array.isArray(queues) || queues.length > record.identity.queues) return 'no queues';
  for (const queue of queues) {
    const good =
      isInteger(queue?.index, record.identity.queues - 1) &&
      isInteger(queue?.position?.avail, 0xffff) &&
      isInteger(queue?.position?.used, 0xffff);
    if (!good) return 'a queue without index or position';
  }
  if (new Set(queues.map(({ index }) => index)).size < queues.length) return 'a queue twice';
  return undefined;
}

function isInteger(value: unknown, maximum: number): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= maximum;
}
