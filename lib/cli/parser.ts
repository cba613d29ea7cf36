import type { Argv } from 'yargs';
import { UsageError } from '../daemon/index.ts';

/** What each of our programs asks of yargs: whatever is wrong is thrown, as one line in English. */
export function strictly<T>(parser: Argv<T>, program: string): Argv<T> {
  return (
    parser
      .strict()
      .detectLocale(false)
      // The last of an option given twice counts, as in other programs; a list would surprise.
      .parserConfiguration({ 'duplicate-arguments-array': false, 'parse-numbers': false })
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

/**
 * An option whose value is a number. yargs' own numbers won't do: a 1 given after another value is
 * added to it, for it also means "once more" there.
 */
export function numeric(name: string, describe: string) {
  return {
    requiresArg: true,
    describe,
    coerce: (given: string | number): number => {
      const value = typeof given === 'string' && given.trim() === '' ? Number.NaN : Number(given);
      if (!Number.isFinite(value)) {
        throw new UsageError(`--${name} ${given}: not a number`);
      }
      return value;
    },
  };
}
