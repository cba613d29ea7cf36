import { type BlockOptions, BlockQueueDevice } from '../block/index.ts';
import type { IoPort } from '../native/index.ts';
import type { DeviceModel } from '../reactor/index.ts';
import { FileStore, type FileTarget } from '../store/index.ts';

/** The name of the block model in a worker's table. */
export const BLOCK_MODEL = 'block';

/** What the main thread passes to a worker for a disk. */
export interface BlockModelOptions {
  readonly block: BlockOptions;
  readonly target: FileTarget;
}

/** What the main thread tells the model of a disk that is served. */
export interface BlockMessage {
  /** The driver turned the write cache off or on (CONFIG_WCE). */
  readonly writeThrough: boolean;
}

/** A disk on a reactor: each queue has its own channel to the one open image. */
export function openBlockModel(options: unknown, io: IoPort): DeviceModel {
  const { block, target } = options as BlockModelOptions;
  const queues = new Set<BlockQueueDevice>();
  let cached = true;
  return {
    createQueue: ({ port, features, counters }) => {
      let store: FileStore | undefined;
      const device = new BlockQueueDevice({
        port,
        store: (sink) => (store = new FileStore(io, target, sink)),
        options: block,
        driverFeatures: features,
        counters,
      });
      if (!cached) device.writeThrough = true;
      queues.add(device);
      const release = () => {
        queues.delete(device);
        store?.close();
      };
      return { device, release };
    },
    tell: (message) => {
      const { writeThrough } = message as BlockMessage;
      cached = !writeThrough;
      for (const queue of queues) queue.writeThrough = writeThrough;
    },
    // The image's descriptor belongs to the main thread.
    close: () => {},
  };
}
