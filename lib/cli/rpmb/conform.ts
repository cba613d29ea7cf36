import { readFileSync } from 'node:fs';
import type { CommandModule } from 'yargs';
import { UsageError } from '../../daemon/index.ts';
import { native } from '../../native/index.ts';
import { type ConformNote, conform, parseConfig } from '../../rpmb/index.ts';
import { say, sayJson } from '../output.ts';
import { type KeyArguments, keyOptions, readKey, withKey } from './keys.ts';
import { type TargetOptions, withTarget } from './target.ts';

interface ConformArguments extends KeyArguments, TargetOptions {
  target: string;
  destructive: boolean;
  earlier?: string | undefined;
  json: boolean;
}

export const conformCommand: CommandModule<object, ConformArguments> = {
  command: 'conform <target>',
  describe: "try anyone's RPMB clause by clause; status 1 when one is broken",
  builder: (yargs) =>
    keyOptions(
      yargs
        .positional('target', {
          type: 'string',
          demandOption: true,
          describe: 'unix:PATH (a vhost-user socket) or file:STATE (a state file nobody serves)',
        })
        .options({
          destructive: {
            type: 'boolean',
            default: false,
            describe: 'program the key, write over any block, use up a counter near its end',
          },
          earlier: {
            type: 'string',
            requiresArg: true,
            describe: 'the --json report of an earlier run: look for what it left behind',
          },
          'wrap-key-file': {
            type: 'string',
            requiresArg: true,
            describe: 'the wrapping key of a state file',
          },
          json: { type: 'boolean', default: false, describe: 'one JSON object on stdout' },
        }),
    ),
  handler: async (argv) => {
    const earlier = argv.earlier === undefined ? undefined : noteOf(argv.earlier);
    const report = await withKey(readKey(argv), (key) =>
      withTarget(argv.target, argv, (endpoint) =>
        conform({
          name: endpoint.name,
          exchange: endpoint.exchange,
          limits: parseConfig(endpoint.config, endpoint.name),
          getRandom: (into) => native.getRandom(into),
          destructive: argv.destructive,
          ...(key === undefined ? {} : { key }),
          ...(earlier === undefined ? {} : { earlier }),
          onClause: ({ outcome, id, source, text, why }) => {
            if (argv.json) return;
            say(
              `${outcome.padEnd(9)} ${id} (${source}): ${text}${why === undefined ? '' : `: ${why}`}`,
            );
          },
        }),
      ),
    );
    if (argv.json) sayJson(report);
    else say(`${report.holds} hold, ${report.broken} broken, ${report.notShown} not shown`);
    if (report.broken > 0) process.exitCode = 1;
  },
};

function noteOf(path: string): ConformNote | undefined {
  try {
    return (JSON.parse(readFileSync(path, 'utf8')) as { note?: ConformNote }).note;
  } catch (error) {
    throw new UsageError(`--earlier ${path}: ${(error as Error).message} (give a --json report)`);
  }
}
