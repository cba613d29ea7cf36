export * from './holders.ts';
export * from './sysfs.ts';
export * from './vdpa.ts';
