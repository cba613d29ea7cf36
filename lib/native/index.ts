import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { Addon } from './addon.ts';

export type * from './addon.ts';
export * from './io-table.ts';
export * from './ring-call.ts';

const require = createRequire(import.meta.url);

/** Where the addon may be: an explicit path, this checkout's build, the package's prebuild. */
function find(): Addon {
  const given = process.env['VDUSE_ADDON'];
  if (given) return load(given);
  const candidates = [
    '../../build/Release/vduse.node',
    `../../prebuilds/${process.platform}-${process.arch}/vduse.napi.glibc.node`,
  ].map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const found = candidates.find((path) => existsSync(path));
  if (found === undefined) {
    throw new Error(
      `vduse: no native addon for ${process.platform}-${process.arch}: none of ${candidates.join(', ')} exists (build it with: npm run build:native)`,
    );
  }
  return load(found);
}

/**
 * A copy: V8 keeps the addon's own object, whose properties were set one by one, as a dictionary, and looks
 * a function up there at each call.
 */
function load(path: string): Addon {
  return { ...(require(path) as Addon) };
}

/** The loaded addon; loading fails with an error that names the build command. */
export const native: Addon = find();
