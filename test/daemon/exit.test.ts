/** A process that serves can end at any moment: its engine threads sleep in the kernel, not in Node. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

/** The built package: the tests' TypeScript loader has threads of its own. */
const DIST = fileURLToPath(new URL('../../dist/index.js', import.meta.url));

const ENDS = {
  'process.exit': ['process.exit(3)', 3],
  'an uncaught exception': ['setTimeout(() => { throw new Error("test") })', 1],
} as const;

/** Without the loaders of the tests. */
const env = { ...process.env, NODE_OPTIONS: '' };

t.setTimeout(120_000);

for (const engine of ['auto', 'pool'] as const) {
  for (const [name, [end, status]] of Object.entries(ENDS)) {
    t.test(`${name}, ${engine} engine`, async (t) => {
      const folder = t.testdir();
      const options = {
        image: join(folder, 'd.img'),
        size: 1 << 20,
        queues: 4,
        socket: { path: join(folder, 's.sock') },
      };
      const program = `
        const { serve } = await import(${JSON.stringify(DIST)});
        await serve(${JSON.stringify(options)}, { engine: '${engine}', threads: 4 });
        setTimeout(() => { ${end} }, 100);`;
      const { status: found, signal } = spawnSync(
        process.execPath,
        ['--input-type=module', '--eval', program],
        { timeout: 20_000, killSignal: 'SIGKILL', env },
      );
      t.equal(signal, null, 'it ends');
      t.equal(found, status, 'with its status');
    });
  }
}
