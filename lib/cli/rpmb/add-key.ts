import type { CommandModule } from 'yargs';
import { native } from '../../native/index.ts';
import { readKeyFile } from '../../rpmb/index.ts';
import { say } from '../output.ts';

/** What the proposed Linux RPMB interface looks for in the keyring. */
const DESCRIPTION = 'RPMB MAC';

export const addKeyCommand: CommandModule<
  object,
  { 'key-file': string; 'allow-readable-key': boolean }
> = {
  command: 'add-key',
  describe: "put a key into the user's kernel keyring; prints its serial",
  builder: (yargs) =>
    yargs.options({
      'key-file': {
        type: 'string',
        demandOption: true,
        requiresArg: true,
        describe: 'a file with the 32 bytes of the key',
      },
      'allow-readable-key': {
        type: 'boolean',
        default: false,
        describe: 'accept a key file that others may read',
      },
    }),
  handler: (argv) => {
    const key = readKeyFile(argv['key-file'], { allowReadable: argv['allow-readable-key'] });
    try {
      say(String(native.addUserKey(DESCRIPTION, key)));
    } finally {
      key.fill(0);
    }
  },
};
