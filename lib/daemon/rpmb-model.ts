import { type IoPort, native } from '../native/index.ts';
import type { DeviceModel } from '../reactor/index.ts';
import {
  allocatePrivate,
  deviceMemoryBytes,
  RpmbDevice,
  RpmbQueueDevice,
  type StateModel,
} from '../rpmb/index.ts';
import { FileStore, type FileTarget, type StoreFactory } from '../store/index.ts';

/** The name of the RPMB model in a worker's table. */
export const RPMB_MODEL = 'rpmb';

/** What the main thread passes to a worker for an RPMB. */
export interface RpmbModelOptions {
  readonly model: StateModel;
  readonly target: FileTarget;
}

/** An RPMB on a reactor. */
export function openRpmbModel(options: unknown, io: IoPort): DeviceModel {
  const { model, target } = options as RpmbModelOptions;
  return rpmbModel(model, (sink) => new FileStore(io, target, sink));
}

/** An RPMB whose state lies in any store. Key, counter and last result outlive its queue's stops. */
export function rpmbModel(model: StateModel, store: StoreFactory): DeviceModel {
  const { memory, release } = allocatePrivate(native, deviceMemoryBytes(model.layout));
  const device = new RpmbDevice({
    model,
    store,
    memory,
    getRandom: (into) => native.getRandom(into),
  });
  return {
    createQueue: ({ port, counters }) => ({
      device: new RpmbQueueDevice(device, port, counters),
      release: () => {},
    }),
    close: () => {
      device.close();
      release();
    },
  };
}
