import { type RpmbLimits, rpmbConfig } from './config.ts';
import { deviceMemoryBytes, RpmbDevice } from './device.ts';
import { RpmbError } from './errors.ts';
import { FRAME_BYTES } from './frame.ts';
import type { Profile } from './rules.ts';
import { type OpenOptions, openState, type StateFile } from './state/open.ts';
import { allocatePrivate, type RpmbSystem } from './system.ts';

/**
 * Send a request to an RPMB as one chain, with room for `responseFrames` frames; resolves with the
 * bytes the device wrote. A transport that fails or waits too long rejects.
 */
export type Exchange = (request: Uint8Array, responseFrames: number) => Promise<Uint8Array>;

/** A device a client can talk to, wherever it is. */
export interface Endpoint {
  /** What it is, for messages. */
  readonly name: string;
  /** The bytes of its configuration space. */
  readonly config: Uint8Array;
  readonly exchange: Exchange;
  close(): Promise<void>;
}

/** Where an RPMB is to be found. */
export interface Target {
  readonly kind: 'unix' | 'file';
  readonly path: string;
}

/** Read `unix:PATH` (a vhost-user socket) or `file:STATE`. Throws an RpmbError. */
export function parseTarget(text: string): Target {
  const colon = text.indexOf(':');
  const kind = text.slice(0, Math.max(0, colon));
  const path = text.slice(colon + 1);
  if ((kind === 'unix' || kind === 'file') && path !== '') return { kind, path };
  const remedy = 'give unix:PATH of a vhost-user socket, or file:STATE of a state file';
  throw new RpmbError('TARGET', text, 'names no RPMB', remedy);
}

/** A device over an open state, on this thread. */
export interface OfflineDevice {
  readonly device: RpmbDevice;
  close(): void;
}

/** Make a device over an open state that nobody serves. */
export function openOfflineDevice(
  state: StateFile,
  system: RpmbSystem,
  profile?: Profile,
): OfflineDevice {
  const { memory, release } = allocatePrivate(system, deviceMemoryBytes(state.layout));
  const device = new RpmbDevice({
    model: state.model,
    store: state.store,
    memory,
    getRandom: (into) => system.getRandom(into),
    ...(profile === undefined ? {} : { profile }),
  });
  return {
    device,
    close: () => {
      device.close();
      release();
    },
  };
}

/** Talk to a device directly, as a chain would bring its frames. */
export function exchangeWith(device: RpmbDevice): Exchange {
  return (request, responseFrames) =>
    new Promise((resolve) => {
      const frames = request.length / FRAME_BYTES;
      if (frames === 0 || !Number.isInteger(frames)) {
        resolve(new Uint8Array(0));
        return;
      }
      const fits = Math.min(request.length, device.request.length);
      device.request.set(request.subarray(0, fits));
      if (fits < request.length) {
        device.request.set(request.subarray(-FRAME_BYTES), fits - FRAME_BYTES);
      }
      device.execute(frames, responseFrames, (answered) => {
        resolve(device.response.slice(0, answered * FRAME_BYTES));
      });
    });
}

/** Open a state file and talk to its device without anybody serving it. */
export function openOffline(path: string, options: OpenOptions, system: RpmbSystem): Endpoint {
  const state = openState(path, options, system);
  try {
    const offline = openOfflineDevice(state, system);
    const limits: RpmbLimits = state.layout;
    return {
      name: path,
      config: rpmbConfig(limits),
      exchange: exchangeWith(offline.device),
      close: async () => {
        offline.close();
        state.close();
      },
    };
  } catch (error) {
    state.close();
    throw error;
  }
}
