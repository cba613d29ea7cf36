import { native } from '../native/index.ts';
import type { QueueCounters, ReactorPool } from '../reactor/index.ts';
import {
  PooledBackend,
  VHOST_USER_MEMORY,
  VhostUserServer,
  type VhostUserServerOptions,
} from '../transport/vhost-user/index.ts';
import { Feature } from '../virtio/index.ts';
import type { HostedDevice } from './hosted-device.ts';
import {
  faultText,
  type PreparedDevice,
  type ServedDevice,
  type ServingEvents,
  type StopOutcome,
} from './served.ts';

const RING_FEATURES = Feature.Version1 | Feature.EventIndex | Feature.IndirectDesc;

export interface VhostUserTransportOptions {
  readonly socket: VhostUserServerOptions;
  /** `split` alone, or both for the front end to choose from (the default). */
  readonly ring?: 'split' | 'packed';
}

/** A device that will listen on a socket, or use the connection it was given. */
export function prepareVhostUser(
  name: string,
  options: VhostUserTransportOptions,
  open: () => HostedDevice,
): PreparedDevice {
  const device = open();
  return {
    name,
    device,
    start: (pool, events) => start(name, device, options, pool, events),
    discard: () => device.discard(),
  };
}

async function start(
  name: string,
  device: HostedDevice,
  options: VhostUserTransportOptions,
  pool: ReactorPool,
  events: ServingEvents,
): Promise<ServedDevice> {
  const log = (text: string) => events.log(`${name}: ${text}`);
  const pooled = await pool.addDevice(
    {
      model: device.model,
      modelOptions: device.modelOptions,
      memory: VHOST_USER_MEMORY,
      memoryOptions: [],
      queues: device.queues,
    },
    {
      fault: (index, fault) => {
        log(faultText(index, fault));
        backend.queueBroken(index);
      },
      note: log,
    },
  );
  const tell = async (message: unknown) => {
    if (message !== undefined) await pooled.tellModel(message);
  };
  const ring = options.ring === 'split' ? RING_FEATURES : RING_FEATURES | Feature.RingPacked;
  const backend = new PooledBackend(pooled, {
    features: device.features | ring,
    config: () => device.config(),
    writeConfig: (offset, bytes) => tell(device.writeConfig(offset, bytes)),
    reset: () => tell(device.reset()),
  });
  let stopping = false;
  let server: VhostUserServer;
  try {
    server = VhostUserServer.start(native, backend, options.socket, {
      disconnected: (error) => {
        if (error !== undefined) log(`front end thrown out: ${error.message}`);
      },
      log,
    });
  } catch (error) {
    await pooled.remove();
    throw error;
  }
  server.ended.then(
    () => stopping || events.ended(undefined),
    (error: Error) => stopping || events.ended(error),
  );
  return {
    name,
    transport: 'vhost-user',
    device,
    resumed: false,
    node: undefined,
    socket: server.path,
    next: server.path === undefined ? undefined : nextStep(device, server.path),
    counters: (): QueueCounters[] => pooled.counters(),
    async stop(): Promise<StopOutcome> {
      stopping = true;
      try {
        await server.close();
        await pooled.remove();
        await device.flush();
        return { device: 'gone' };
      } finally {
        device.close();
      }
    },
  };
}

/** What to type to use the device. */
function nextStep(device: HostedDevice, path: string): string {
  if (device.type === 'rpmb') return `vduse rpmb get-info unix:${path}`;
  return `-chardev socket,id=c,path=${path} -device vhost-user-blk-pci,chardev=c (QEMU, with shared memory)`;
}
