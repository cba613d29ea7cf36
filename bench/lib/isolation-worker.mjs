// The engine thread of `tools/bench rpmb-isolation`: the daemon's, but for an RPMB whose store takes
// its time.

import { BLOCK_MODEL, openBlockModel } from '../../dist/daemon/block-model.js';
import { RPMB_MODEL } from '../../dist/daemon/rpmb-model.js';
import { native } from '../../dist/native/index.js';
import { runReactor } from '../../dist/reactor/index.js';
import {
  allocatePrivate,
  deviceMemoryBytes,
  RpmbDevice,
  RpmbQueueDevice,
} from '../../dist/rpmb/index.js';
import { DelayStore, FileStore } from '../../dist/store/index.js';
import { VHOST_USER_MEMORY, VhostUserMemory } from '../../dist/transport/vhost-user/index.js';

/** A hard disk or a memory card: where syncs are handled on the thread of the disk, that one stands still. */
const DELAY_US = 20_000;

function openDelayedRpmb({ model, target }, io) {
  const { memory, release } = allocatePrivate(native, deviceMemoryBytes(model.layout));
  const device = new RpmbDevice({
    model,
    store: (sink) =>
      new DelayStore((inner) => new FileStore(io, target, inner), sink, io, DELAY_US),
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

runReactor(native, {
  models: { [BLOCK_MODEL]: openBlockModel, [RPMB_MODEL]: openDelayedRpmb },
  memories: { [VHOST_USER_MEMORY]: (options) => new VhostUserMemory(native, options) },
});
