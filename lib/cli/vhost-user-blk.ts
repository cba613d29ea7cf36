#!/usr/bin/env node
/**
 * A block back end by QEMU's conventions for vhost-user back end programs (docs/interop/vhost-user
 * in QEMU's tree): for libvirt and others that start one themselves. `vduse serve` does more.
 */
import yargs from 'yargs';
import { serve, UsageError } from '../daemon/index.ts';
import { complain } from './output.ts';
import { numeric, strictly } from './parser.ts';
import { serveUntilStopped } from './serve-loop.ts';
import { StopSignals } from './signals.ts';
import { socketOf } from './socket-options.ts';
import { version } from './version.ts';

const CAPABILITIES = { type: 'block', features: ['read-only', 'blk-file'] };

async function main(args: readonly string[]): Promise<number> {
  // By the conventions all other arguments are ignored then, even wrong ones.
  if (args.includes('--print-capabilities')) {
    process.stdout.write(`${JSON.stringify(CAPABILITIES)}\n`);
    return 0;
  }
  const argv = await strictly(yargs([...args]), 'vhost-user-blk')
    .scriptName('vhost-user-blk')
    .usage('$0 --socket-path PATH | --fd N  --blk-file FILE')
    .options({
      'socket-path': { type: 'string', requiresArg: true, describe: 'listen on this socket' },
      fd: numeric('fd', 'a socket that listens or is connected'),
      'blk-file': {
        type: 'string',
        requiresArg: true,
        describe: 'the image: a regular file or a block device',
      },
      'read-only': { type: 'boolean', default: false, describe: 'refuse writes' },
      'print-capabilities': { type: 'boolean', describe: 'say what this program can do, as JSON' },
    })
    .version(version())
    .parseAsync();
  if (argv['help'] || argv['version']) return 0;
  const socket = socketOf(argv);
  if (socket === undefined) throw new UsageError('no socket (give --socket-path or --fd)');
  const image = argv['blk-file'];
  if (image === undefined) throw new UsageError('no image (give --blk-file)');
  const stop = new StopSignals();
  try {
    const server = await serve({ image, socket, readOnly: argv['read-only'] }, { log: complain });
    await serveUntilStopped(server, { json: false, counters: false }, stop);
  } finally {
    stop.close();
  }
  return 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const { code, message } = error as { code?: string; message: string };
  complain(message);
  process.exitCode = code === 'ERR_VDUSE_USAGE' ? 64 : 1;
}
