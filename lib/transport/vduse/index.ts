export * from './control.ts';
export * from './device.ts';
export * from './errors.ts';
export * from './iotlb.ts';
