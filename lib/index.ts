/**
 * The public API: serve disks and RPMBs, attach and detach them, drive a vhost-user device, and look
 * at the host.
 *
 *     import { serve } from 'vduse';
 *     const server = await serve({ image: 'disk.img', size: 2 ** 30, attach: true });
 *     console.log(server.devices[0].node); // /dev/vda
 *     await server.stop();
 */
export * from './daemon/index.ts';
export * from './frontend/index.ts';
