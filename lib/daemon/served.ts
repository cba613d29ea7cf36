import type { QueueCounters, ReactorPool } from '../reactor/index.ts';
import type { QueueFault } from '../virtio/index.ts';
import type { HostedDevice } from './hosted-device.ts';

/** How serving a device ended. */
export type StopOutcome =
  /** The device, or the socket, is gone. */
  | { readonly device: 'gone' }
  /** It is still attached and waits for the next server; `resumable` where that one can go on. */
  | { readonly device: 'left'; readonly resumable: boolean };

/** A device that is served. */
export interface ServedDevice {
  readonly name: string;
  readonly transport: 'vduse' | 'vhost-user';
  readonly device: HostedDevice;
  /** It was taken over from an earlier server. */
  readonly resumed: boolean;
  /** The node through which this host uses it (/dev/vdX), once attached. */
  readonly node: string | undefined;
  /** The vhost-user socket's path, where it has one. */
  readonly socket: string | undefined;
  /** What to type next to use it. */
  readonly next: string | undefined;
  counters(): QueueCounters[];
  /**
   * Drain and end. Throws a HeldError that says who uses the device, unless `force`: it is then
   * served as before.
   */
  stop(force: boolean): Promise<StopOutcome>;
}

/** A device that is open, with everything checked that can be, but not yet served. */
export interface PreparedDevice {
  readonly name: string;
  readonly device: HostedDevice;
  /** Serve it. On an error nothing is left behind. */
  start(pool: ReactorPool, events: ServingEvents): Promise<ServedDevice>;
  /** Give up: release all, remove what was created. */
  discard(): void;
}

export interface ServingEvents {
  /** One line an operator should know. */
  log(text: string): void;
  /** Serving ended by itself; undefined: as it should (a connected socket's end). */
  ended(error: Error | undefined): void;
}

/** A queue's fault in words. */
export function faultText(index: number, fault: QueueFault): string {
  const head = fault.head < 0 ? '' : `head ${fault.head}, `;
  return `queue ${index} stopped: ${fault.reason} (${head}0x${fault.detail.toString(16)}): the driver must reset the device`;
}

/** Run the steps back, newest first. The first failure is the one to tell: later ones are logged. */
export async function undoAll(
  steps: readonly (() => unknown)[],
  log: (text: string) => void,
): Promise<void> {
  for (const step of steps.toReversed()) {
    try {
      await step();
    } catch (error) {
      log(`while giving up: ${(error as Error).message}`);
    }
  }
}
