import type { CommandModule } from 'yargs';
import { native } from '../../native/index.ts';
import {
  type CreateOptions,
  checkState,
  createState,
  inspectState,
  readKeyFile,
} from '../../rpmb/index.ts';
import { parseSize } from '../../store/index.ts';
import { humanSize, say, sayJson } from '../output.ts';
import { numeric } from '../parser.ts';

const statePositional = { type: 'string', demandOption: true, describe: 'the state file' } as const;

const wrapOptions = {
  'wrap-key-file': {
    type: 'string',
    requiresArg: true,
    describe: 'a file with the 32 bytes that the key is wrapped under',
  },
  'allow-readable-key': {
    type: 'boolean',
    default: false,
    describe: 'accept a key file that others may read',
  },
} as const;

interface CreateArguments {
  state: string;
  size?: string | undefined;
  'key-file'?: string | undefined;
  'wrap-key-file'?: string | undefined;
  'allow-readable-key': boolean;
  'initial-counter'?: number | undefined;
  'max-write-blocks'?: number | undefined;
  'max-read-blocks'?: number | undefined;
  from?: string | undefined;
}

export const createCommand: CommandModule<object, CreateArguments> = {
  command: 'create <state>',
  describe: 'make a state file for an RPMB',
  builder: (yargs) =>
    yargs.positional('state', statePositional).options({
      size: {
        type: 'string',
        requiresArg: true,
        describe: 'a multiple of 128K up to 16M [default: what --from needs]',
      },
      'key-file': { type: 'string', requiresArg: true, describe: 'program this key (32 bytes)' },
      ...wrapOptions,
      'initial-counter': numeric('initial-counter', 'the write counter to begin with [default: 0]'),
      'max-write-blocks': numeric(
        'max-write-blocks',
        'blocks in one write, 0 to 255; 0 tells drivers that there is no limit [default: 32]',
      ),
      'max-read-blocks': numeric('max-read-blocks', 'the same for reads [default: 32]'),
      from: {
        type: 'string',
        requiresArg: true,
        describe: 'a raw image whose bytes the data begins with',
      },
    }),
  handler: (argv) => {
    const allowReadable = argv['allow-readable-key'];
    const keys: Uint8Array[] = [];
    const keyOf = (path: string) => {
      const key = readKeyFile(path, { allowReadable });
      keys.push(key);
      return key;
    };
    try {
      const options: { -readonly [K in keyof CreateOptions]: CreateOptions[K] } = {};
      if (argv.size !== undefined) options.size = parseSize(argv.size);
      if (argv.from !== undefined) options.from = argv.from;
      if (argv['key-file'] !== undefined) options.key = keyOf(argv['key-file']);
      if (argv['wrap-key-file'] !== undefined) options.wrapKey = keyOf(argv['wrap-key-file']);
      if (argv['initial-counter'] !== undefined) options.initialCounter = argv['initial-counter'];
      if (argv['max-write-blocks'] !== undefined) options.maxWriteBlocks = argv['max-write-blocks'];
      if (argv['max-read-blocks'] !== undefined) options.maxReadBlocks = argv['max-read-blocks'];
      createState(argv.state, options, native);
    } finally {
      for (const key of keys) key.fill(0);
    }
  },
};

export const inspectCommand: CommandModule<object, { state: string; json: boolean }> = {
  command: 'inspect <state>',
  describe: 'show what a state file holds (never the key)',
  builder: (yargs) =>
    yargs
      .positional('state', statePositional)
      .option('json', { type: 'boolean', default: false, describe: 'one JSON object on stdout' }),
  handler: ({ state, json }) => {
    const report = inspectState(state, native);
    if (json) {
      sayJson(report);
      return;
    }
    const limit = (blocks: number) => (blocks === 0 ? 'no limit' : `${blocks} blocks`);
    say(`capacity:      ${humanSize(report.capacity)}, ${report.blocks} blocks`);
    say(`largest write: ${limit(report.maxWriteBlocks)}`);
    say(`largest read:  ${limit(report.maxReadBlocks)}`);
    const key = report.keyProgrammed ? 'programmed' : 'none';
    say(`key:           ${key}${report.keyWrapped ? ', stored wrapped' : ''}`);
    say(`write counter: ${report.writeCounter}`);
    say(`commits:       ${report.commits}${report.interrupted ? ', the last one cut off' : ''}`);
    say(`version:       ${report.version}`);
  },
};

interface FsckArguments {
  state: string;
  json: boolean;
  'wrap-key-file'?: string | undefined;
  'allow-readable-key': boolean;
}

export const fsckCommand: CommandModule<object, FsckArguments> = {
  command: 'fsck <state>',
  describe: 'check a state file, changing nothing; status 1 when something is wrong',
  builder: (yargs) =>
    yargs
      .positional('state', statePositional)
      .options(wrapOptions)
      .option('json', { type: 'boolean', default: false, describe: 'one JSON object on stdout' }),
  handler: (argv) => {
    const file = argv['wrap-key-file'];
    const allowReadable = argv['allow-readable-key'];
    const wrapKey = file === undefined ? undefined : readKeyFile(file, { allowReadable });
    try {
      const report = checkState(argv.state, wrapKey === undefined ? {} : { wrapKey }, native);
      if (argv.json) sayJson(report);
      else
        for (const { verdict, part, text } of report.findings) say(`${verdict} ${part}: ${text}`);
      if (!report.ok) process.exitCode = 1;
    } finally {
      wrapKey?.fill(0);
    }
  },
};
