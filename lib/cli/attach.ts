import type { CommandModule } from 'yargs';
import { attach } from '../daemon/index.ts';
import { say, sayJson } from './output.ts';

export const attachCommand: CommandModule<object, { name: string; json: boolean }> = {
  command: 'attach <name>',
  describe: 'attach a served device: its disk appears (needs CAP_NET_ADMIN)',
  builder: (yargs) =>
    yargs
      .positional('name', { type: 'string', demandOption: true, describe: "the device's name" })
      .option('json', { type: 'boolean', default: false, describe: 'one JSON object on stdout' }),
  handler: async ({ name, json }) => {
    const node = await attach(name);
    if (json) sayJson({ event: 'attached', name, node });
    else say(`${name}: attached: ${node}`);
  },
};
