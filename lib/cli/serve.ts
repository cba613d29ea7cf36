import type { CommandModule } from 'yargs';
import { HeldError, type ServeOptions, serve, type VduseServer } from '../daemon/index.ts';
import { parseSize } from '../store/index.ts';
import { complain, humanSize, say, sayJson } from './output.ts';
import { StopSignals } from './signals.ts';

interface ServeArguments {
  image: string;
  name?: string | undefined;
  attach: boolean;
  size?: string | undefined;
  queues: number;
  'queue-size': number;
  'read-only': boolean;
  'block-size': number;
  serial?: string | undefined;
  direct: boolean;
  'state-dir'?: string | undefined;
  threads?: number | undefined;
  'poll-us'?: number | undefined;
  engine: 'auto' | 'pool';
  json: boolean;
}

export const serveCommand: CommandModule<object, ServeArguments> = {
  command: 'serve <image>',
  describe: 'serve a file or block device as a virtio disk, in the foreground',
  builder: (yargs) =>
    yargs
      .positional('image', {
        type: 'string',
        demandOption: true,
        describe: 'a regular file or a block device',
      })
      .options({
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
        queues: { type: 'number', requiresArg: true, default: 1, describe: 'virtqueues, 1 to 256' },
        'queue-size': {
          type: 'number',
          requiresArg: true,
          default: 256,
          describe: 'descriptors a queue, a power of two from 4 to 1024',
        },
        'read-only': { type: 'boolean', default: false, describe: 'refuse writes' },
        'block-size': {
          type: 'number',
          requiresArg: true,
          default: 512,
          describe: 'logical block size, 512 or 4096',
        },
        serial: {
          type: 'string',
          requiresArg: true,
          describe: "serial number, at most 20 bytes [default: the image's base name]",
        },
        direct: { type: 'boolean', default: false, describe: 'O_DIRECT: past the page cache' },
        'state-dir': {
          type: 'string',
          requiresArg: true,
          describe: 'where to keep what the next server needs to take the device over',
        },
        threads: {
          type: 'number',
          requiresArg: true,
          describe: 'engine threads, 1 to 64 [default: as many as queues, at most the CPUs]',
        },
        'poll-us': {
          type: 'number',
          requiresArg: true,
          describe: 'longest spin before a sleep, in microseconds [default: 100; 0 on one CPU]',
        },
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
      const server = await serve({
        ...optionsOf(argv),
        log: complain,
        signal: stop.signal,
      });
      await serveUntilStopped(server, argv.json, stop);
    } finally {
      stop.close();
    }
  },
};

function optionsOf(argv: ServeArguments): ServeOptions {
  const given = <K extends string, V>(key: K, value: V | undefined) =>
    value === undefined ? {} : ({ [key]: value } as { [P in K]: V });
  return {
    image: argv.image,
    attach: argv.attach,
    queues: argv.queues,
    queueSize: argv['queue-size'],
    readOnly: argv['read-only'],
    blockSize: argv['block-size'],
    direct: argv.direct,
    engine: argv.engine,
    ...given('name', argv.name),
    ...given('size', argv.size === undefined ? undefined : parseSize(argv.size)),
    ...given('serial', argv.serial),
    ...given('stateDir', argv['state-dir']),
    ...given('threads', argv.threads),
    ...given('pollUs', argv['poll-us']),
  };
}

async function serveUntilStopped(
  server: VduseServer,
  json: boolean,
  stop: StopSignals,
): Promise<void> {
  const printCounters = () => tellCounters(server, json, 'counters');
  process.on('SIGUSR1', printCounters);
  tellReady(server, json);
  try {
    for (let force = false; ; force = true) {
      const failure = await Promise.race([stop.next(), server.failed]);
      if (failure !== undefined) throw failure;
      try {
        const outcome = await server.stop(force);
        if (outcome.device === 'left') {
          complain(
            outcome.resumable
              ? `${server.name}: still attached: drained and left for the next "vduse serve" of the same image and options`
              : `${server.name}: still attached, and without a state directory it cannot be taken over (remove it: vdpa dev del ${server.name}; vduse destroy ${server.name})`,
          );
        }
        break;
      } catch (error) {
        if (!(error instanceof HeldError)) throw error;
        complain(error.message);
      }
    }
  } finally {
    process.off('SIGUSR1', printCounters);
  }
  if (json) tellCounters(server, json, 'stopped');
}

function tellReady(server: VduseServer, json: boolean): void {
  const { name, transport, capacity, blockSize, queues, readOnly, engine, engineNote, resumed } =
    server;
  const node = server.node;
  const next =
    node === undefined ? `vdpa dev add name ${name} mgmtdev vduse` : `the disk is ${node}`;
  if (json) {
    sayJson({
      event: 'ready',
      name,
      transport,
      size: capacity,
      blockSize,
      queues,
      readOnly,
      engine,
      ...(engineNote === undefined ? {} : { engineNote }),
      resumed,
      ...(node === undefined ? { next } : { node }),
    });
    return;
  }
  const how = engineNote === undefined ? engine : `${engine}: ${engineNote}`;
  say(
    `${name}: ${resumed ? 'taken over' : 'ready'}: ${humanSize(capacity)}, ${queues} queue${queues === 1 ? '' : 's'}${readOnly ? ', read-only' : ''}, ${how}; ${node === undefined ? 'next: ' : ''}${next}`,
  );
}

function tellCounters(server: VduseServer, json: boolean, event: 'counters' | 'stopped'): void {
  const queues = server.counters();
  if (json) {
    sayJson({ event, queues });
    return;
  }
  for (const [index, { requests, bytes, interrupts, errors }] of queues.entries()) {
    say(
      `${server.name}: queue ${index}: ${requests} requests, ${bytes} bytes, ${interrupts} interrupts, ${errors} errors`,
    );
  }
}
