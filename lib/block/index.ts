export * from './config.ts';
export * from './device.ts';
export * from './features.ts';
export * from './request.ts';
