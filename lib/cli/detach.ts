import type { CommandModule } from 'yargs';
import { detach } from '../daemon/index.ts';
import { say, sayJson } from './output.ts';

export const detachCommand: CommandModule<object, { name: string; force: boolean; json: boolean }> =
  {
    command: 'detach <name>',
    describe: 'detach a device: its disk goes, its server stays (needs CAP_NET_ADMIN)',
    builder: (yargs) =>
      yargs
        .positional('name', { type: 'string', demandOption: true, describe: "the device's name" })
        .option('force', {
          type: 'boolean',
          default: false,
          describe: 'even while the disk is mounted or otherwise held',
        })
        .option('json', { type: 'boolean', default: false, describe: 'one JSON object on stdout' }),
    handler: async ({ name, force, json }) => {
      await detach(name, force);
      if (json) sayJson({ event: 'detached', name });
      else say(`${name}: detached`);
    },
  };
