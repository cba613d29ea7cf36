// The package as a user has it installed, on a tmpfs. The checkout lies behind 9p, where each of the
// 250 files that a start of the program opens costs time: it would take ten seconds instead of one.
import { cpSync, existsSync, readFileSync, renameSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** The checkout. */
export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
export const PACKAGE = '/dev/shm/vduse-package/';

if (!existsSync(PACKAGE)) {
  const making = '/dev/shm/vduse-package.new/';
  const { packages } = JSON.parse(readFileSync(`${ROOT}node_modules/.package-lock.json`, 'utf8'));
  const dependencies = Object.keys(packages).filter((path) => path !== '' && !packages[path].dev);
  const filter = (path) => !/\.(map|d\.ts)$/.test(path);
  for (const path of ['package.json', 'dist', 'build/Release/vduse.node', ...dependencies]) {
    if (existsSync(ROOT + path)) cpSync(ROOT + path, making + path, { recursive: true, filter });
  }
  renameSync(making, PACKAGE);
}
