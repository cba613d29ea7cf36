import type { CommandModule } from 'yargs';
import { destroy } from '../daemon/index.ts';
import { say, sayJson } from './output.ts';

export const destroyCommand: CommandModule<object, { name: string; json: boolean }> = {
  command: 'destroy <name>',
  describe: 'remove a device that a server left behind (detach it first)',
  builder: (yargs) =>
    yargs
      .positional('name', { type: 'string', demandOption: true, describe: "the device's name" })
      .option('json', { type: 'boolean', default: false, describe: 'one JSON object on stdout' }),
  handler: ({ name, json }) => {
    destroy(name);
    if (json) sayJson({ event: 'destroyed', name });
    else say(`${name}: destroyed`);
  },
};
