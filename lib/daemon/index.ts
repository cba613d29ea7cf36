export * from './devices.ts';
export { type Check, examine } from './doctor.ts';
export * from './errors.ts';
export {
  type StopOutcome,
  serveVduse as serve,
  type VduseServer,
  type VduseServerOptions as ServeOptions,
} from './vduse-server.ts';
