import type { CommandModule } from 'yargs';
import { listDevices } from '../daemon/index.ts';
import { say, sayJson } from './output.ts';

export const listCommand: CommandModule<object, { json: boolean }> = {
  command: 'list',
  describe: 'list the VDUSE devices of this host',
  builder: (yargs) =>
    yargs.option('json', { type: 'boolean', default: false, describe: 'a JSON array on stdout' }),
  handler: ({ json }) => {
    const devices = listDevices();
    if (json) {
      sayJson(devices);
      return;
    }
    const rows = [
      ['NAME', 'ATTACHED', 'DRIVER', 'NODE'],
      ...devices.map(({ name, attached, driver, node }) => [
        name,
        attached ? 'yes' : 'no',
        driver ?? '-',
        node ?? '-',
      ]),
    ];
    const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]!.length)));
    for (const row of rows) {
      say(
        row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd(),
      );
    }
  },
};
