#!/usr/bin/env node
/**
 * An RPMB back end with the options of the vhost-user RPMB daemon that was proposed to QEMU, for those
 * who know it. `--flash-path` names our state file; `vduse serve --type rpmb` does more.
 */
import yargs from 'yargs';
import { serve, UsageError } from '../daemon/index.ts';
import { complain } from './output.ts';
import { numeric, strictly } from './parser.ts';
import { serveUntilStopped } from './serve-loop.ts';
import { StopSignals } from './signals.ts';
import { socketOf } from './socket-options.ts';
import { version } from './version.ts';

/** The conventions know no type for it; this is what the proposed daemon said. */
const CAPABILITIES = { type: 'block' };

async function main(args: readonly string[]): Promise<number> {
  // By the conventions all other arguments are ignored then, even wrong ones.
  if (args.includes('--print-capabilities')) {
    process.stdout.write(`${JSON.stringify(CAPABILITIES)}\n`);
    return 0;
  }
  const argv = await strictly(yargs([...args]), 'vhost-user-rpmb')
    .scriptName('vhost-user-rpmb')
    .usage('$0 --socket-path PATH | --fd N  --flash-path STATE')
    .options({
      'socket-path': { type: 'string', requiresArg: true, describe: 'listen on this socket' },
      fd: numeric('fd', 'a socket that listens or is connected'),
      'flash-path': {
        type: 'string',
        requiresArg: true,
        describe: 'the state file (vduse rpmb create; --from takes over a raw image)',
      },
      'key-path': {
        type: 'string',
        requiresArg: true,
        describe: 'a file with the 32 bytes of the key; with --key-set',
      },
      'key-set': {
        type: 'boolean',
        default: false,
        describe: 'the device has the key of --key-path: it is programmed where there is none yet',
      },
      'initial-counter': numeric(
        'initial-counter',
        'the write counter of a state that was never used',
      ),
      'allow-readable-key': {
        type: 'boolean',
        default: false,
        describe: 'accept a key file that others may read',
      },
      v: {
        alias: 'verbose',
        type: 'boolean',
        default: false,
        describe: 'tell at the end how much was served',
      },
      debug: { type: 'boolean', default: false, describe: 'the same, and all else, as JSON' },
      'print-capabilities': { type: 'boolean', describe: 'say what this program can do, as JSON' },
    })
    .version(version())
    .parseAsync();
  if (argv['help'] || argv['version']) return 0;
  const socket = socketOf(argv);
  if (socket === undefined) throw new UsageError('no socket (give --socket-path or --fd)');
  const image = argv['flash-path'];
  if (image === undefined) throw new UsageError('no state file (give --flash-path)');
  const keyFile = argv['key-path'];
  if (argv['key-set'] && keyFile === undefined) {
    throw new UsageError('--key-set: which key? (give --key-path too)');
  }
  const counter = argv['initial-counter'];
  const stop = new StopSignals();
  try {
    const server = await serve(
      {
        type: 'rpmb',
        image,
        socket,
        allowReadableKey: argv['allow-readable-key'],
        // Without --key-set the guest programs its key itself; ours keeps it in the state file.
        ...(argv['key-set'] && keyFile !== undefined ? { keyFile } : {}),
        ...(counter === undefined ? {} : { initialCounter: counter }),
      },
      { log: complain },
    );
    await serveUntilStopped(server, { json: argv.debug, counters: argv.v || argv.debug }, stop);
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
