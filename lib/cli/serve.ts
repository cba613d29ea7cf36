import type { CommandModule } from 'yargs';
import {
  type DeviceOptions,
  readConfig,
  type ServerOptions,
  serve,
  UsageError,
} from '../daemon/index.ts';
import { parseSize } from '../store/index.ts';
import { complain } from './output.ts';
import { numeric } from './parser.ts';
import { serveUntilStopped } from './serve-loop.ts';
import { StopSignals } from './signals.ts';
import { socketOf } from './socket-options.ts';

interface ServeArguments {
  image?: string | undefined;
  type: 'block' | 'rpmb';
  'wrap-key-file'?: string | undefined;
  'allow-readable-key': boolean;
  config?: string | undefined;
  name?: string | undefined;
  attach: boolean;
  size?: string | undefined;
  queues: number;
  'queue-size': number;
  'read-only': boolean;
  'block-size': number;
  serial?: string | undefined;
  direct: boolean;
  mmap: boolean;
  'state-dir'?: string | undefined;
  'socket-path'?: string | undefined;
  'socket-group'?: string | undefined;
  'socket-mode'?: string | undefined;
  fd?: number | undefined;
  ring?: 'split' | 'packed' | undefined;
  threads?: number | undefined;
  'poll-us'?: number | undefined;
  engine: 'auto' | 'pool';
  json: boolean;
}

export const serveCommand: CommandModule<object, ServeArguments> = {
  command: 'serve [image]',
  describe: 'serve a file or block device as a virtio disk, in the foreground',
  builder: (yargs) =>
    yargs
      .positional('image', {
        type: 'string',
        describe: 'a regular file or a block device',
      })
      .options({
        type: {
          choices: ['block', 'rpmb'] as const,
          default: 'block' as const,
          describe: 'what it is; an RPMB is served from a state file (vduse rpmb create)',
        },
        name: {
          type: 'string',
          requiresArg: true,
          describe:
            "the device's name; 1 to 63 of A-Z a-z 0-9 . _ - [default: the image's base name]",
        },
        attach: {
          type: 'boolean',
          default: false,
          describe: 'attach it too (needs CAP_NET_ADMIN); ready when /dev/vdX is there',
        },
        size: {
          type: 'string',
          requiresArg: true,
          describe: 'create the image, sparse, if it is missing: 512M, 1G, …',
        },
        queues: { ...numeric('queues', 'virtqueues, 1 to 256'), default: 1 },
        'queue-size': {
          ...numeric('queue-size', 'descriptors a queue, a power of two from 4 to 1024'),
          default: 256,
        },
        'read-only': { type: 'boolean', default: false, describe: 'refuse writes' },
        'block-size': { ...numeric('block-size', 'logical block size, 512 or 4096'), default: 512 },
        serial: {
          type: 'string',
          requiresArg: true,
          describe: "serial number, at most 20 bytes [default: the image's base name]",
        },
        direct: { type: 'boolean', default: false, describe: 'O_DIRECT: past the page cache' },
        mmap: {
          type: 'boolean',
          default: true,
          describe:
            'copy what is cached from and to a mapping of the image; --no-mmap: only by calls',
        },
        'state-dir': {
          type: 'string',
          requiresArg: true,
          describe: 'where to keep what the next server needs to take the device over',
        },
        'socket-path': {
          type: 'string',
          requiresArg: true,
          describe: 'serve a virtual machine over vhost-user: listen on this socket',
        },
        fd: numeric('fd', 'the same, on a descriptor that listens or is connected'),
        'socket-group': {
          type: 'string',
          requiresArg: true,
          describe: "the socket file's group",
        },
        'socket-mode': {
          type: 'string',
          requiresArg: true,
          describe: "the socket file's mode, octal [default: 0600]",
        },
        ring: {
          choices: ['split', 'packed'] as const,
          describe: 'the kind of virtqueue [default: split; over a socket the front end chooses]',
        },
        config: {
          type: 'string',
          requiresArg: true,
          describe: 'serve all devices of this JSON file (share/vduse-config.schema.json)',
        },
        'wrap-key-file': {
          type: 'string',
          requiresArg: true,
          describe: 'the wrapping key, for an RPMB whose key is stored wrapped',
        },
        'allow-readable-key': {
          type: 'boolean',
          default: false,
          describe: 'accept a key file that others may read',
        },
        threads: numeric(
          'threads',
          'engine threads, 1 to 64 [default: as many as queues, at most the CPUs]',
        ),
        'poll-us': numeric(
          'poll-us',
          'longest spin before a sleep, in microseconds [default: 100; 0 on one CPU]',
        ),
        engine: {
          choices: ['auto', 'pool'] as const,
          default: 'auto' as const,
          describe: 'auto: io_uring where allowed; pool: preadv and pwritev on a few threads',
        },
        json: { type: 'boolean', default: false, describe: 'one JSON object a line on stdout' },
      }),
  handler: async (argv) => {
    const stop = new StopSignals();
    try {
      const devices = devicesOf(argv, stop.signal);
      const server = await serve(devices, engineOf(argv));
      await serveUntilStopped(server, { json: argv.json, counters: argv.json }, stop);
    } finally {
      stop.close();
    }
  },
};

/** Options of one device: they come from the configuration file where there is one. */
const DEVICE_OPTIONS = ['name', 'attach', 'size', 'serial', 'socket-path', 'fd', 'ring'] as const;

function devicesOf(argv: ServeArguments, signal: AbortSignal): DeviceOptions | DeviceOptions[] {
  const { image, config } = argv;
  if (config !== undefined) {
    const option = DEVICE_OPTIONS.find((name) => argv[name]);
    if (image !== undefined || option !== undefined) {
      const other = image === undefined ? `--${option}` : 'an image';
      throw new UsageError(`--config: not together with ${other} (put it in the file)`);
    }
    return readConfig(config).map((device) => ({ ...device, signal }));
  }
  if (image === undefined || image === '') {
    throw new UsageError('no image given (name a file or block device, or give --config FILE)');
  }
  const socket = socketOf(argv);
  return {
    image,
    type: argv.type,
    allowReadableKey: argv['allow-readable-key'],
    ...given('wrapKeyFile', argv['wrap-key-file']),
    attach: argv.attach,
    queues: argv.queues,
    queueSize: argv['queue-size'],
    readOnly: argv['read-only'],
    blockSize: argv['block-size'],
    direct: argv.direct,
    mmap: argv.mmap,
    signal,
    ...given('name', argv.name),
    ...given('size', argv.size === undefined ? undefined : parseSize(argv.size)),
    ...given('serial', argv.serial),
    ...given('stateDir', argv['state-dir']),
    ...given('ring', argv.ring),
    ...given('socket', socket),
  };
}

function engineOf(argv: ServeArguments): ServerOptions {
  return {
    log: complain,
    engine: argv.engine,
    ...given('threads', argv.threads),
    ...given('pollUs', argv['poll-us']),
  };
}

/** `{ key: value }`, or nothing where there is no value: an option not given is not undefined. */
function given<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return value === undefined ? {} : ({ [key]: value } as { [P in K]: V });
}
