import type { CommandModule } from 'yargs';
import { examine } from '../daemon/index.ts';
import { say, sayJson } from './output.ts';

export const doctorCommand: CommandModule<object, { json: boolean }> = {
  command: 'doctor',
  describe: 'check kernel, modules, permissions and tools; say what to do about each lack',
  builder: (yargs) =>
    yargs.option('json', {
      type: 'boolean',
      default: false,
      describe: 'one JSON object on stdout',
    }),
  handler: async ({ json }) => {
    const checks = await examine();
    if (json) {
      sayJson({ ok: checks.every((check) => check.ok), checks });
      return;
    }
    for (const { name, ok, found, remedy } of checks) {
      say(
        `${ok ? 'ok     ' : 'missing'} ${name}: ${found}${remedy === undefined ? '' : ` (${remedy})`}`,
      );
    }
  },
};
