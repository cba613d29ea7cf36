// The engine thread of `tools/bench rpmb-isolation`: the daemon's, but for an RPMB whose store takes
// its time.

import { BLOCK_MODEL, openBlockModel } from '../../dist/daemon/block-model.js';
import { RPMB_MODEL, rpmbModel } from '../../dist/daemon/rpmb-model.js';
import { native } from '../../dist/native/index.js';
import { runReactor } from '../../dist/reactor/index.js';
import { DelayStore, FileStore } from '../../dist/store/index.js';
import { VHOST_USER_MEMORY, VhostUserMemory } from '../../dist/transport/vhost-user/index.js';

const DELAY_US = 5000;

function openDelayedRpmb({ model, target }, io) {
  return rpmbModel(
    model,
    (sink) => new DelayStore((inner) => new FileStore(io, target, inner), sink, io, DELAY_US),
  );
}

runReactor(native, {
  models: { [BLOCK_MODEL]: openBlockModel, [RPMB_MODEL]: openDelayedRpmb },
  memories: { [VHOST_USER_MEMORY]: (options) => new VhostUserMemory(native, options) },
});
