import type { ReactorPool } from '../reactor/index.ts';
import type { VhostUserServerOptions } from '../transport/vhost-user/index.ts';
import { checkDiskOptions, type DiskOptions, openDisk } from './disk.ts';
import { checkEngineOptions, type EngineOptions, startEngine } from './engine.ts';
import { UsageError } from './errors.ts';
import { openRpmb, type RpmbOptions, refuseDiskOptions } from './rpmb.ts';
import { prepareVduse, type VduseTransportOptions } from './serve-vduse.ts';
import { prepareVhostUser } from './serve-vhost-user.ts';
import { type PreparedDevice, type ServedDevice, type StopOutcome, undoAll } from './served.ts';

/** A device to serve. Without `socket` it is served over VDUSE. */
export interface DeviceOptions extends DiskOptions, RpmbOptions, VduseTransportOptions {
  /** What it is; default: a disk. */
  readonly type?: 'block' | 'rpmb';
  /** Default: the image's base name. */
  readonly name?: string;
  /** Serve it to a virtual machine's front end over vhost-user. */
  readonly socket?: VhostUserServerOptions;
}

export interface ServerOptions extends EngineOptions {
  /** Told of what an operator should know: warnings, faults and why; one line each. */
  readonly log?: (text: string) => void;
}

/** Devices that are served by this process, on one engine. */
export class Server {
  readonly devices: readonly ServedDevice[];
  /** What the engine waits with, `io_uring` or `pool`, and why it is not io_uring. */
  readonly engine: { readonly name: string; readonly note: string | undefined };
  /** Settles when serving ends by itself: with the reason, or undefined when it should (--fd). */
  readonly ended: Promise<Error | undefined>;
  readonly #pools: readonly ReactorPool[];
  readonly #stopped = new Map<ServedDevice, StopOutcome>();

  constructor(
    devices: readonly ServedDevice[],
    pools: readonly ReactorPool[],
    ended: Promise<Error | undefined>,
  ) {
    this.devices = devices;
    this.engine = pools[0]!.engine;
    this.ended = ended;
    this.#pools = pools;
  }

  /**
   * Drain and end all. Throws a HeldError when somebody uses a device that was attached here, unless
   * `force`; that device is served as before, and `stop` may be called again.
   */
  async stop(force = false): Promise<readonly StopOutcome[]> {
    const results = await Promise.allSettled(
      this.devices.map(async (device) => {
        if (!this.#stopped.has(device)) this.#stopped.set(device, await device.stop(force));
      }),
    );
    const failure = results.find((result) => result.status === 'rejected');
    if (failure !== undefined) throw failure.reason;
    await Promise.all(this.#pools.map((pool) => pool.close()));
    return this.devices.map((device) => this.#stopped.get(device)!);
  }
}

/**
 * Serve one device or several. Resolves when all are ready (with `attach`: when the node is there).
 * Every device is checked and opened before any is served; on an error nothing is left behind.
 */
export async function serve(
  devices: DeviceOptions | readonly DeviceOptions[],
  options: ServerOptions = {},
): Promise<Server> {
  const log = options.log ?? (() => {});
  const list = Array.isArray(devices) ? devices : [devices as DeviceOptions];
  checkEngineOptions(options);
  for (const device of list) checkDeviceOptions(device);
  const undo: (() => unknown)[] = [];
  try {
    const prepared: PreparedDevice[] = [];
    for (const device of list) {
      const one = prepare(device);
      prepared.push(one);
      undo.push(() => one.discard());
      for (const warning of one.device.warnings) log(warning);
    }
    let end: (error: Error | undefined) => void = () => {};
    const ended = new Promise<Error | undefined>((resolve) => {
      end = resolve;
    });
    const pools: ReactorPool[] = [];
    const start = async (
      queues: number,
      disks: boolean,
      engine: EngineOptions,
    ): Promise<ReactorPool> => {
      const pool = await startEngine(queues, disks, engine, end);
      undo.push(() => pool.close());
      pools.push(pool);
      return pool;
    };
    const shared = prepared.filter(({ device }) => !device.ownThread);
    const queues = shared.reduce((sum, { device }) => sum + device.queues, 0);
    const disks = shared.some(({ device }) => device.type === 'block');
    const common = shared.length > 0 ? await start(queues, disks, options) : undefined;
    const served: ServedDevice[] = [];
    for (const one of prepared) {
      const own = common === undefined || one.device.ownThread;
      const pool = own ? await start(1, false, { ...options, threads: 1 }) : common;
      const device = await one.start(pool, { log, ended: end });
      served.push(device);
      undo.push(() => device.stop(true));
    }
    return new Server(served, pools, ended);
  } catch (error) {
    await undoAll(undo, log);
    throw error;
  }
}

function prepare(options: DeviceOptions): PreparedDevice {
  const name = options.name ?? options.image.slice(options.image.lastIndexOf('/') + 1);
  const { socket, ring } = options;
  const open = (switchableCache: boolean) =>
    options.type === 'rpmb' ? openRpmb(options) : openDisk(options, switchableCache);
  if (socket === undefined) return prepareVduse(name, options, () => open(false));
  return prepareVhostUser(name, { socket, ...(ring === undefined ? {} : { ring }) }, () =>
    open(true),
  );
}

function checkDeviceOptions(options: DeviceOptions): void {
  if (options.type === 'rpmb') refuseDiskOptions(options);
  else checkDiskOptions(options);
  if (options.socket !== undefined && options.attach) {
    throw new UsageError('--attach: a vhost-user socket is not attached (leave it out)');
  }
}
