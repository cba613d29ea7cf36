export * from './device.ts';
export type { IoPolicy } from './io-engine.ts';
export { ReactorLoop } from './loop.ts';
export * from './model.ts';
export * from './orders.ts';
export * from './reactor.ts';
export * from './reactor-pool.ts';
export * from './worker.ts';
