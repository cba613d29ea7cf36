export { readConfig } from './config.ts';
export * from './devices.ts';
export { type Check, examine } from './doctor.ts';
export * from './errors.ts';
export type { HostedDevice } from './hosted-device.ts';
export type { ServedDevice, StopOutcome } from './served.ts';
export * from './server.ts';
