import { readFileSync } from 'node:fs';
import { parseSize } from '../store/index.ts';
import { UsageError } from './errors.ts';
import type { DeviceOptions } from './server.ts';

/** What a key's value must be. */
type Kind = 'string' | 'number' | 'boolean' | 'size' | 'mode' | 'ring' | 'type';

/** The keys of a device, as share/vduse-config.schema.json publishes them. */
const KEYS: Readonly<Record<string, Kind>> = {
  type: 'type',
  image: 'string',
  name: 'string',
  size: 'size',
  queues: 'number',
  queueSize: 'number',
  readOnly: 'boolean',
  blockSize: 'number',
  serial: 'string',
  direct: 'boolean',
  mmap: 'boolean',
  attach: 'boolean',
  stateDir: 'string',
  ring: 'ring',
  wrapKeyFile: 'string',
  allowReadableKey: 'boolean',
  socketPath: 'string',
  socketGroup: 'string',
  socketMode: 'mode',
};

/** Read a configuration file: `{ "devices": [ … ] }`. Throws a UsageError that names file, device and key. */
export function readConfig(path: string): DeviceOptions[] {
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new UsageError(`--config ${path}: ${(error as Error).message} (give a JSON file)`);
  }
  try {
    return parseConfig(content);
  } catch (error) {
    if (error instanceof UsageError) throw new UsageError(`--config ${path}: ${error.message}`);
    throw error;
  }
}

/** The devices of a configuration object, every key checked. */
export function parseConfig(content: unknown): DeviceOptions[] {
  const { devices, ...rest } = objectOf(content, 'the file');
  const [unknown] = Object.keys(rest).filter((key) => key !== '$schema');
  if (unknown !== undefined) throw new UsageError(`unknown key "${unknown}" (known: "devices")`);
  if (!Array.isArray(devices) || devices.length === 0) {
    throw new UsageError('"devices": not a list of devices (give at least one)');
  }
  const parsed = devices.map((device, index) => deviceOf(device, `devices[${index}]`));
  const names = parsed.map(({ name, image }) => name ?? image);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw new UsageError(`two devices are named "${twice}"`);
  return parsed;
}

function deviceOf(content: unknown, where: string): DeviceOptions {
  const object = objectOf(content, where);
  const options: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(object)) {
    const kind = KEYS[key];
    if (kind === undefined) {
      throw new UsageError(
        `${where}: unknown key "${key}" (known: ${Object.keys(KEYS).join(', ')})`,
      );
    }
    options[key] = checkValue(kind, value, `${where}: "${key}"`);
  }
  if (typeof options['image'] !== 'string') throw new UsageError(`${where}: no "image"`);
  const { socketPath, socketGroup, socketMode, ...device } = options;
  if (socketPath === undefined) {
    if ((socketGroup ?? socketMode) !== undefined) {
      throw new UsageError(`${where}: "socketGroup" and "socketMode" need "socketPath"`);
    }
    return device as unknown as DeviceOptions;
  }
  return {
    ...device,
    socket: {
      path: socketPath,
      ...(socketGroup === undefined ? {} : { group: socketGroup }),
      ...(socketMode === undefined ? {} : { mode: socketMode }),
    },
  } as unknown as DeviceOptions;
}

function checkValue(kind: Kind, value: unknown, where: string): unknown {
  switch (kind) {
    case 'size':
      if (typeof value === 'number' && Number.isSafeInteger(value) && value > 0) return value;
      if (typeof value === 'string') return parseSize(value);
      throw new UsageError(`${where}: not a size (a number of bytes, or "1G")`);
    case 'mode':
      if (typeof value === 'string' && /^0?[0-7]{3}$/.test(value)) return Number.parseInt(value, 8);
      throw new UsageError(`${where}: not an octal mode (such as "0660")`);
    case 'ring':
      if (value === 'split' || value === 'packed') return value;
      throw new UsageError(`${where}: neither "split" nor "packed"`);
    case 'type':
      if (value === 'block' || value === 'rpmb') return value;
      throw new UsageError(`${where}: neither "block" nor "rpmb"`);
    default:
      if (typeof value === kind) return value;
      throw new UsageError(`${where}: not a ${kind}`);
  }
}

function objectOf(content: unknown, where: string): Record<string, unknown> {
  if (typeof content === 'object' && content !== null && !Array.isArray(content)) {
    return content as Record<string, unknown>;
  }
  throw new UsageError(`${where}: not an object`);
}
