export * from './backend.ts';
export * from './memory-source.ts';
export * from './pooled-backend.ts';
export * from './server.ts';
export { SocketError, type SocketErrorCode, type SocketFileOptions } from './socket-file.ts';
