import type { Argv, CommandModule } from 'yargs';
import { UsageError } from '../../daemon/index.ts';
import { BLOCK_BYTES, CAPACITY_UNIT, FRAME_BYTES, parseConfig } from '../../rpmb/index.ts';
import { humanSize, say, sayJson } from '../output.ts';
import { numeric } from '../parser.ts';
import { readWhole, withOutput, writeAll, writeWhole } from './files.ts';
import { type KeyArguments, keyOptions, needKey, readKey, withKey } from './keys.ts';
import { clientOf, type TargetOptions, withTarget } from './target.ts';

interface TargetArguments extends TargetOptions {
  target: string;
}

type Common = TargetArguments & KeyArguments;

function target(yargs: Argv<object>): Argv<TargetArguments> {
  return yargs
    .positional('target', {
      type: 'string',
      demandOption: true,
      describe: 'unix:PATH (a vhost-user socket) or file:STATE (a state file nobody serves)',
    })
    .option('wrap-key-file', {
      type: 'string',
      requiresArg: true,
      describe: 'the wrapping key of a state file',
    });
}

export const getInfoCommand: CommandModule<object, TargetArguments & { json: boolean }> = {
  command: 'get-info <target>',
  describe: "show a device's limits",
  builder: (yargs) =>
    target(yargs).option('json', {
      type: 'boolean',
      default: false,
      describe: 'one JSON object on stdout',
    }),
  handler: async (argv) => {
    await withTarget(argv.target, argv, async (endpoint) => {
      const limits = parseConfig(endpoint.config, endpoint.name);
      const capacity = limits.capacityUnits * CAPACITY_UNIT;
      if (argv.json) {
        sayJson({ target: endpoint.name, capacity, blocks: capacity / BLOCK_BYTES, ...limits });
        return;
      }
      const limit = (blocks: number) => (blocks === 0 ? 'no limit' : `${blocks} blocks`);
      say(`capacity:      ${humanSize(capacity)}, ${capacity / BLOCK_BYTES} blocks`);
      say(`largest write: ${limit(limits.maxWriteBlocks)}`);
      say(`largest read:  ${limit(limits.maxReadBlocks)}`);
    });
  },
};

export const programKeyCommand: CommandModule<object, Common> = {
  command: 'program-key <target>',
  describe: 'program the key, once and for all',
  builder: (yargs) => keyOptions(target(yargs)),
  handler: async (argv) => {
    await withKey(needKey(argv), (key) =>
      withTarget(argv.target, argv, (endpoint) => clientOf(endpoint).programKey(key)),
    );
    say('key programmed');
  },
};

export const writeCounterCommand: CommandModule<object, Common> = {
  command: 'write-counter <target>',
  describe: 'print the write counter (verified where a key is given)',
  builder: (yargs) => keyOptions(target(yargs)),
  handler: async (argv) => {
    const counter = await withKey(readKey(argv), (key) =>
      withTarget(argv.target, argv, (endpoint) => clientOf(endpoint).readCounter(key)),
    );
    say(String(counter));
  },
};

interface RangeArguments extends Common {
  address: number;
  count: number;
  file: string;
}

function range(yargs: Argv<object>): Argv<RangeArguments> {
  return keyOptions(target(yargs))
    .positional('address', {
      type: 'string',
      demandOption: true,
      describe: 'the first block',
      coerce: (text: string) => blockNumber('address', text, 0),
    })
    .positional('count', {
      type: 'string',
      demandOption: true,
      describe: 'blocks of 256 bytes',
      coerce: (text: string) => blockNumber('count', text, 1),
    })
    .positional('file', {
      type: 'string',
      demandOption: true,
      describe: 'a file, or - for the standard stream',
    });
}

export const writeBlocksCommand: CommandModule<
  object,
  RangeArguments & { 'save-frames'?: string | undefined }
> = {
  command: 'write-blocks <target> <address> <count> <file>',
  describe: 'write blocks from a file; each request of the device is atomic',
  builder: (yargs) =>
    range(yargs).option('save-frames', {
      type: 'string',
      requiresArg: true,
      describe: 'keep the requests as they were sent in this file',
    }),
  handler: async (argv) => {
    const data = readWhole(argv.file);
    const wanted = argv.count * BLOCK_BYTES;
    if (data.length !== wanted) {
      throw new UsageError(
        `${argv.file}: has ${data.length} bytes, not the ${wanted} of ${argv.count} blocks (give as many)`,
      );
    }
    const write = (onRequest: (frames: Uint8Array) => void) =>
      withKey(needKey(argv), (key) =>
        withTarget(argv.target, argv, (endpoint) =>
          clientOf(endpoint).writeBlocks(key, argv.address, data, { onRequest }),
        ),
      );
    const file = argv['save-frames'];
    const counter =
      file === undefined
        ? await write(() => {})
        : await withOutput(file, (fd) => write((frames) => writeAll(fd, file, frames)));
    say(`${argv.count} blocks written, write counter ${counter}`);
  },
};

export const readBlocksCommand: CommandModule<object, RangeArguments> = {
  command: 'read-blocks <target> <address> <count> <file>',
  describe: 'read blocks into a file (verified where a key is given)',
  builder: range,
  handler: async (argv) => {
    const data = await withKey(readKey(argv), (key) =>
      withTarget(argv.target, argv, (endpoint) =>
        clientOf(endpoint).readBlocks(argv.address, argv.count, key),
      ),
    );
    await writeWhole(argv.file, data);
  },
};

interface RawArguments extends TargetArguments {
  in: string;
  out: string;
  responses: number;
}

export const rawCommand: CommandModule<object, RawArguments> = {
  command: 'raw <target>',
  describe: 'send frames unchanged, as one chain, and keep what comes back',
  builder: (yargs) =>
    target(yargs).options({
      in: { type: 'string', demandOption: true, requiresArg: true, describe: 'the request frames' },
      out: {
        type: 'string',
        demandOption: true,
        requiresArg: true,
        describe: 'where the response goes',
      },
      responses: { ...numeric('responses', 'response frames to make room for'), default: 1 },
    }),
  handler: async (argv) => {
    const { responses } = argv;
    if (!Number.isInteger(responses) || responses < 0 || responses > 1024) {
      throw new UsageError(`--responses ${responses}: out of range (give 0 to 1024)`);
    }
    const request = readWhole(argv.in);
    if (request.length === 0) throw new UsageError(`${argv.in}: is empty (give frames)`);
    const response = await withTarget(argv.target, argv, (endpoint) =>
      endpoint.exchange(request, responses),
    );
    await writeWhole(argv.out, response);
    if (argv.out !== '-') say(`${response.length / FRAME_BYTES} frames came back`);
  },
};

function blockNumber(what: string, text: string, least: number): number {
  const number = /^\d{1,9}$/.test(text) ? Number(text) : -1;
  if (number >= least) return number;
  throw new UsageError(`${what} ${text}: not a whole number from ${least} on`);
}
