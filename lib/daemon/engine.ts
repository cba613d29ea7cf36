import { cpus } from 'node:os';
import { extname } from 'node:path';
import { native } from '../native/index.ts';
import { type PoolOptions, ReactorPool } from '../reactor/index.ts';
import { UsageError } from './errors.ts';

/** How the engine may be set up; every field has a default. */
export interface EngineOptions {
  /** Threads; default: as many as queues, at most the CPUs. */
  readonly threads?: number;
  /** Longest spin for more work before a sleep, in µs; default 100, 0 where one CPU is online. */
  readonly pollUs?: number;
  /** `pool` uses preadv and pwritev on a few threads even where io_uring is allowed. */
  readonly engine?: PoolOptions['engine'];
  /** How page-cached reads and writes are run. */
  readonly policy?: PoolOptions['policy'];
}

const MAX_THREADS = 64;
const MAX_POLL_US = 1_000_000;

/** Throws a UsageError that names the option and its limits. */
export function checkEngineOptions({ threads = 1, pollUs = 0 }: EngineOptions): void {
  if (!Number.isInteger(threads) || threads < 1 || threads > MAX_THREADS) {
    throw new UsageError(`--threads ${threads}: out of range (give 1 to ${MAX_THREADS})`);
  }
  if (!Number.isInteger(pollUs) || pollUs < 0 || pollUs > MAX_POLL_US) {
    throw new UsageError(`--poll-us ${pollUs}: out of range (give 0 to ${MAX_POLL_US})`);
  }
}

/** The worker's first file, beside this one, in TypeScript or compiled. */
const ENTRY = new URL(`./worker${extname(import.meta.url)}`, import.meta.url);

/** Start the engine for so many queues; `disks`: some of them are disks'. */
export function startEngine(
  queues: number,
  disks: boolean,
  options: EngineOptions,
  died: (error: Error) => void,
): Promise<ReactorPool> {
  const online = cpus().length || 1;
  return ReactorPool.start(
    native,
    ENTRY,
    {
      threads: options.threads ?? Math.min(queues, online),
      pollUs: options.pollUs ?? (online > 1 ? 100 : 0),
      engine: options.engine ?? 'auto',
      policy: options.policy ?? 'auto',
      rehearse: disks,
    },
    died,
  );
}
