export * from '../frontend/index.ts';
export { PackedDriver } from '../virtio/packed-driver.ts';
export { SplitDriver } from '../virtio/split-driver.ts';
export * from './memory-store.ts';
export * from './mock-memory.ts';
