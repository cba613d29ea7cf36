/**
 * The public API: serve a disk from a file, attach and detach it, and look at the host.
 *
 *     import { serve } from 'vduse';
 *     const server = await serve({ image: 'disk.img', size: 2 ** 30, attach: true });
 *     console.log(server.node); // /dev/vda
 *     await server.stop();
 */
export * from './daemon/index.ts';
