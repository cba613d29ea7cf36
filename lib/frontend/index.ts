export { VhostUserError, type VhostUserErrorCode } from '../virtio/vhost-user-messages.ts';
export { BlockClient, BlockError, type ZeroOptions } from './block-client.ts';
export { type BlockLoadOptions, type BlockLoadResult, runBlockLoad } from './block-load.ts';
export { LatencyHistogram } from './latency-histogram.ts';
export { type BufferMemory, type Completion, FrontendQueue } from './queue.ts';
export {
  type FrontendOptions,
  type FrontendTarget,
  type StartOptions,
  VhostUserFrontend,
} from './vhost-user.ts';
