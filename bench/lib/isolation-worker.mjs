// The engine thread of `tools/bench rpmb-isolation`: the daemon's, but for an RPMB whose store takes
// its time.

import { BLOCK_MODEL, openBlockModel } from '../../dist/daemon/block-model.js';
import { RPMB_MODEL, rpmbModel } from '../../dist/daemon/rpmb-model.js';
import { native } from '../../dist/native/index.js';
import { runReactor } from '../../dist/reactor/index.js';
import { DelayStore, FileStore } from '../../dist/store/index.js';
import { VHOST_USER_MEMORY, VhostUserMemory } from '../../dist/transport/vhost-user/index.js';
import { WARM_WRITES } from './rpmb.mjs';

const DELAY_MS = 5;

/** Slot, sync, data. */
const STEPS_A_WRITE = 3;

/**
 * A disk that is slow where the daemon waits for it in place: nothing else happens on the thread
 * while an operation takes its time. The first writes are quick, so that the code is compiled.
 */
class SlowDisk {
  #quick = WARM_WRITES * STEPS_A_WRITE;
  #nobody = new Int32Array(new SharedArrayBuffer(4));
  #inner;
  #sink;

  constructor(inner, sink) {
    this.#sink = sink;
    this.#inner = inner(this);
    this.info = this.#inner.info;
  }

  read(token, extent) {
    this.#inner.read(token, extent);
  }

  write(token, extent) {
    this.#inner.write(token, extent);
  }

  addMemory(memory, offset, length) {
    this.#inner.addMemory(memory, offset, length);
  }

  flush(token) {
    this.#inner.flush(token);
  }

  close() {
    this.#inner.close();
  }

  completed(token, result) {
    if (this.#quick > 0) this.#quick--;
    else Atomics.wait(this.#nobody, 0, 0, DELAY_MS);
    this.#sink.completed(token, result);
  }
}

function openDelayedRpmb({ model, target }, io) {
  const file = (sink) => new FileStore(io, target, sink);
  return rpmbModel(model, (sink) =>
    target.syncsInPlace
      ? new SlowDisk(file, sink)
      : new DelayStore(file, sink, io, DELAY_MS * 1000),
  );
}

runReactor(native, {
  models: { [BLOCK_MODEL]: openBlockModel, [RPMB_MODEL]: openDelayedRpmb },
  memories: { [VHOST_USER_MEMORY]: (options) => new VhostUserMemory(native, options) },
});
