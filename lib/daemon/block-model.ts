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

/** A disk on a reactor: each queue has its own channel to the one open image. */
export function openBlockModel(options: unknown, io: IoPort): DeviceModel {
  const { block, target } = options as BlockModelOptions;
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
      return { device, release: () => store?.close() };
    },
    // The image's descriptor belongs to the main thread.
    close: () => {},
  };
}
