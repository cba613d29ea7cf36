import type { Argv } from 'yargs';
import { UsageError } from '../../daemon/index.ts';
import { native } from '../../native/index.ts';
import { KEY_BYTES, readKeyFile } from '../../rpmb/index.ts';
import { numeric } from '../parser.ts';

/** Where a key comes from: never the command line itself. */
export interface KeyArguments {
  'key-file'?: string | undefined;
  'key-fd'?: number | undefined;
  'key-id'?: number | undefined;
  'allow-readable-key'?: boolean | undefined;
}

/** Add the options that name a key. */
export function keyOptions<T>(yargs: Argv<T>): Argv<T & KeyArguments> {
  return yargs.options({
    'key-file': {
      type: 'string',
      requiresArg: true,
      describe: 'a file with the 32 bytes of the key',
    },
    'key-fd': numeric('key-fd', 'an open descriptor with them'),
    'key-id': numeric('key-id', 'the serial of a key in the kernel keyring (vduse rpmb add-key)'),
    'allow-readable-key': {
      type: 'boolean',
      default: false,
      describe: 'accept a key file that others may read',
    },
  }) as Argv<T & KeyArguments>;
}

/** Read the key that was named, or undefined. The caller wipes it. */
export function readKey(argv: KeyArguments): Uint8Array | undefined {
  const { 'key-file': file, 'key-fd': fd, 'key-id': id } = argv;
  const named = [file, fd, id].filter((source) => source !== undefined);
  if (named.length > 1)
    throw new UsageError('--key-file, --key-fd, --key-id: only one of them (leave out the others)');
  if (id !== undefined) return readFromKeyring(id);
  const source = file ?? fd;
  if (source === undefined) return undefined;
  if (typeof source === 'number' && (!Number.isInteger(source) || source < 0)) {
    throw new UsageError(`--key-fd ${source}: not a descriptor (give its number)`);
  }
  return readKeyFile(source, { allowReadable: argv['allow-readable-key'] ?? false });
}

/** The same where there must be one. */
export function needKey(argv: KeyArguments): Uint8Array {
  const key = readKey(argv);
  if (key === undefined) throw new UsageError('no key (give --key-file, --key-fd or --key-id)');
  return key;
}

/** Use a key, then wipe it. */
export async function withKey<T, K extends Uint8Array | undefined>(
  key: K,
  use: (key: K) => Promise<T>,
): Promise<T> {
  try {
    return await use(key);
  } finally {
    key?.fill(0);
  }
}

function readFromKeyring(serial: number): Uint8Array {
  if (!Number.isInteger(serial) || serial <= 0) {
    throw new UsageError(`--key-id ${serial}: not a key's serial (vduse rpmb add-key prints it)`);
  }
  let key: Uint8Array;
  try {
    key = native.readKey(serial);
  } catch (error) {
    throw new UsageError(
      `--key-id ${serial}: ${(error as Error).message} (add it: vduse rpmb add-key --key-file FILE)`,
    );
  }
  if (key.length === KEY_BYTES) return key;
  const { length } = key;
  key.fill(0);
  throw new UsageError(`--key-id ${serial}: has ${length} bytes, not ${KEY_BYTES} (add another)`);
}
