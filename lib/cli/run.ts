import yargs from 'yargs';
import { attachCommand } from './attach.ts';
import { destroyCommand } from './destroy.ts';
import { detachCommand } from './detach.ts';
import { doctorCommand } from './doctor.ts';
import { listCommand } from './list.ts';
import { complain } from './output.ts';
import { strictly } from './parser.ts';
import { rpmbCommand } from './rpmb/index.ts';
import { serveCommand } from './serve.ts';
import { version } from './version.ts';

const EXIT_FAILURE = 1;
const EXIT_USAGE = 64;

/** Codes of errors that are the command line's fault. */
const USAGE_CODES = new Set([
  'ERR_VDUSE_USAGE',
  'ERR_VDUSE_NAME',
  'ERR_VDUSE_SIZE',
  'ERR_VDUSE_BLOCK_OPTIONS',
]);

/** Run a command line; resolves with the exit status: 0, 1 for failures, 64 for usage. */
export async function run(args: readonly string[]): Promise<number> {
  try {
    await strictly(yargs([...args]), 'vduse')
      .scriptName('vduse')
      .usage('$0 COMMAND\n\nServe a virtio block disk, or an RPMB, from a plain file.')
      .command(serveCommand)
      .command(attachCommand)
      .command(detachCommand)
      .command(destroyCommand)
      .command(listCommand)
      .command(doctorCommand)
      .command(rpmbCommand)
      .version(version())
      .demandCommand(1, 'no command given')
      .recommendCommands()
      .completion('completion', 'print a shell completion script')
      .wrap(Math.min(100, process.stdout.columns ?? 100))
      .parseAsync();
    return Number(process.exitCode ?? 0);
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    complain(message);
    return code !== undefined && USAGE_CODES.has(code) ? EXIT_USAGE : EXIT_FAILURE;
  }
}
