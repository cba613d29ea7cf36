import type { CommandModule } from 'yargs';
import { addKeyCommand } from './add-key.ts';
import { conformCommand } from './conform.ts';
import {
  getInfoCommand,
  programKeyCommand,
  rawCommand,
  readBlocksCommand,
  writeBlocksCommand,
  writeCounterCommand,
} from './device-commands.ts';
import { createCommand, fsckCommand, inspectCommand } from './state-commands.ts';

export const rpmbCommand: CommandModule = {
  command: 'rpmb',
  describe: 'make, check, use and try replay-protected memory blocks',
  builder: (yargs) =>
    yargs
      .command(createCommand)
      .command(inspectCommand)
      .command(fsckCommand)
      .command(getInfoCommand)
      .command(programKeyCommand)
      .command(writeCounterCommand)
      .command(writeBlocksCommand)
      .command(readBlocksCommand)
      .command(rawCommand)
      .command(addKeyCommand)
      .command(conformCommand)
      .demandCommand(1, 'no rpmb command given'),
  handler: () => {},
};
