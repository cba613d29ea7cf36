export * from './file-store.ts';
export * from './filters/delay.ts';
export * from './filters/fault.ts';
export * from './filters/read-only.ts';
export * from './image.ts';
export * from './image-error.ts';
export * from './parse-size.ts';
export * from './store.ts';
