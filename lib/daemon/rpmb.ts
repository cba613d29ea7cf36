import { realpathSync, statSync } from 'node:fs';
import { native } from '../native/index.ts';
import {
  CAPACITY_UNIT,
  openState,
  provisionState,
  RPMB_QUEUES,
  readKeyFile,
  rpmbConfig,
  type StateFile,
  VIRTIO_ID_RPMB,
} from '../rpmb/index.ts';
import { UsageError } from './errors.ts';
import type { HostedDevice } from './hosted-device.ts';
import { RPMB_MODEL, type RpmbModelOptions } from './rpmb-model.ts';

/** What serving an RPMB may be told. */
export interface RpmbOptions {
  /** The state file (`vduse rpmb create`). */
  readonly image: string;
  /** For a state whose key is wrapped: the file with the wrapping key. */
  readonly wrapKeyFile?: string;
  /** A key the device must have; programmed into one that has none. */
  readonly keyFile?: string;
  /** The counter a state begins with that was never used. */
  readonly initialCounter?: number;
  /** Accept key files that others may read. */
  readonly allowReadableKey?: boolean;
}

/** One queue, deep enough for the longest request that the specification's limits allow. */
const QUEUE_SIZE = 256;

/** Options of a disk that mean nothing here. */
export function refuseDiskOptions(options: object): void {
  const { size, readOnly, serial, direct, blockSize, queues } = options as Record<string, unknown>;
  const wrong = { size, readOnly, serial, direct };
  const given = Object.entries(wrong).find(([, value]) => value !== undefined && value !== false);
  const other =
    (queues ?? 1) !== 1 ? 'queues' : (blockSize ?? 512) !== 512 ? 'blockSize' : undefined;
  const option = given?.[0] ?? other;
  if (option !== undefined) {
    throw new UsageError(`--type rpmb: ${option} is an option of disks (leave it out)`);
  }
}

/** Open a state file as a virtio RPMB. Throws an RpmbError. */
export function openRpmb(options: RpmbOptions): HostedDevice {
  const allowReadable = options.allowReadableKey ?? false;
  const readKey = (path: string | undefined) =>
    path === undefined ? undefined : readKeyFile(path, { allowReadable });
  const wrapKey = readKey(options.wrapKeyFile);
  let key: Uint8Array | undefined;
  let state: StateFile | undefined;
  try {
    key = readKey(options.keyFile);
    state = openState(options.image, wrapKey === undefined ? {} : { wrapKey }, native);
    const { initialCounter } = options;
    const notes = provisionState(
      state,
      {
        ...(key === undefined ? {} : { key }),
        ...(initialCounter === undefined ? {} : { initialCounter }),
      },
      native,
    );
    return new Rpmb(state, notes);
  } catch (error) {
    state?.close();
    throw error;
  } finally {
    wrapKey?.fill(0);
    key?.fill(0);
  }
}

/** An open state file as a virtio RPMB. */
class Rpmb implements HostedDevice {
  readonly type = 'rpmb';
  readonly virtioId = VIRTIO_ID_RPMB;
  readonly path: string;
  readonly inode: string;
  readonly readOnly = false;
  readonly queues = RPMB_QUEUES;
  readonly queueSize = QUEUE_SIZE;
  readonly features = 0n;
  readonly model = RPMB_MODEL;
  readonly ownThread = true;
  readonly warnings: readonly string[];
  readonly #state: StateFile;

  constructor(state: StateFile, notes: readonly string[]) {
    const { dev, ino } = statSync(state.path, { bigint: true });
    this.path = realpathSync(state.path);
    this.inode = `${dev}:${ino}`;
    this.warnings = [...state.warnings, ...notes];
    this.#state = state;
  }

  get capacity(): number {
    return this.#state.layout.capacityUnits * CAPACITY_UNIT;
  }

  get modelOptions(): RpmbModelOptions {
    return { model: this.#state.model, target: this.#state.target };
  }

  get facts() {
    const { maxWriteBlocks, maxReadBlocks } = this.#state.layout;
    return { maxWriteBlocks, maxReadBlocks, keyProgrammed: this.#state.programmed };
  }

  get identity() {
    return {};
  }

  config(): Uint8Array {
    return rpmbConfig(this.#state.layout);
  }

  writeConfig(): never {
    throw new RangeError('the configuration space of an RPMB is read-only');
  }

  reset(): undefined {
    return undefined;
  }

  /** Every commit was durable before it was answered. */
  async flush(): Promise<void> {}

  close(): void {
    this.#state.close();
  }

  discard(): void {
    this.#state.close();
  }
}
