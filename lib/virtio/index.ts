export * from './chain.ts';
export * from './guest-memory.ts';
export * from './virtqueue.ts';
