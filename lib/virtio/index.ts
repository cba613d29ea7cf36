export * from './chain.ts';
export type * from './driver.ts';
export * from './features.ts';
export * from './guest-memory.ts';
export * from './packed-driver.ts';
export * from './queues.ts';
export { VirtqueueError } from './ring.ts';
export * from './split-driver.ts';
export * from './virtqueue.ts';
