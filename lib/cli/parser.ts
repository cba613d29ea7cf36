import type { Argv } from 'yargs';
import { UsageError } from '../daemon/index.ts';

/** What each of our programs asks of yargs: whatever is wrong is thrown, as one line in English. */
export function strictly<T>(parser: Argv<T>, program: string): Argv<T> {
  return (
    parser
      .strict()
      .detectLocale(false)
      // The last of an option given twice counts, as in other programs; a list would surprise.
      .parserConfiguration({ 'duplicate-arguments-array': false })
      .exitProcess(false)
      .showHelpOnFail(false)
      .fail((message, error) => {
        // An error that is not yargs' own comes from the command itself.
        if (error !== undefined && error.name !== 'YError') throw error;
        const what = (message ?? error.message).replaceAll(/\s+/g, ' ');
        throw new UsageError(`${what} (see ${program} --help)`);
      })
  );
}
