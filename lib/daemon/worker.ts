/** The first file of every engine thread: says what devices and memories there are. */
import { native } from '../native/index.ts';
import { runReactor } from '../reactor/index.ts';
import { VDUSE_MEMORY, VduseMemory, type VduseMemoryOptions } from '../transport/vduse/index.ts';
import {
  type MemoryPiece,
  VHOST_USER_MEMORY,
  VhostUserMemory,
} from '../transport/vhost-user/index.ts';
import { BLOCK_MODEL, openBlockModel } from './block-model.ts';
import { Rehearsal } from './rehearsal.ts';
import { openRpmbModel, RPMB_MODEL } from './rpmb-model.ts';

const rehearsal = new Rehearsal(native);

runReactor(native, {
  models: { [BLOCK_MODEL]: openBlockModel, [RPMB_MODEL]: openRpmbModel },
  memories: {
    [VDUSE_MEMORY]: (options) => new VduseMemory(native, options as VduseMemoryOptions),
    [VHOST_USER_MEMORY]: (options) => new VhostUserMemory(native, options as MemoryPiece[]),
  },
  rehearse: (tables, options) => rehearsal.run(tables, options),
});
