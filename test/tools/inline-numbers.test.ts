import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { build, type Plugin } from 'esbuild';
import t, { type Test } from 'tap';

const TOOL = new URL('../../tools/lib/inline-numbers.mjs', import.meta.url).href;
const { inlineNumbers } = (await import(TOOL)) as { inlineNumbers(folder: string): Plugin };

/** What the joined files export, and their text. */
async function joined(t: Test, files: Record<string, string>) {
  const folder = join(t.testdir(), 'lib');
  mkdirSync(folder);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  const { outputFiles } = await build({
    entryPoints: [join(folder, 'main.ts')],
    bundle: true,
    format: 'esm',
    write: false,
    logLevel: 'silent',
    plugins: [inlineNumbers(folder)],
  });
  const { text } = outputFiles[0]!;
  const url = `data:text/javascript,${encodeURIComponent(text)}`;
  return { text, exports: (await import(url)) as Record<string, unknown> };
}

const TABLES = `
  /** Kinds. */
  export const Kind = { Read: 0, /* at once */ Write: 1, Low: -7 } as const;
  export type Kind = (typeof Kind)[keyof typeof Kind];
  export const BYTES = 64;
  export const WORDS = BYTES / 4 + (2 ** 3 << 1) - 0x10;
  export const TEXT = { a: 'b' } as const;
`;

t.test('numbers stand where constants and tables of other files are used', async (t) => {
  const { text, exports } = await joined(t, {
    'tables.ts': TABLES,
    'main.ts': `import { BYTES as LENGTH, Kind, TEXT, WORDS } from './tables.ts';
      const LOCAL = 3 | 4;
      const take = (kind: Kind, Kinds = { LENGTH: 1 }) => [kind, -Kind.Low, Kinds.LENGTH, \`\${WORDS}\`];
      export const found = [...take(Kind.Write), LENGTH, LOCAL, TEXT.a, 'Kind.Write'];`,
  });
  t.strictSame(exports['found'], [1, 7, 1, '16', 64, 7, 'b', 'Kind.Write']);
  t.notMatch(text.slice(text.indexOf('main.ts')), /Kind\.(?!Write")|WORDS|\bBYTES/);
});

t.test('a name of two things is left alone, or refused where they meet', async (t) => {
  const { exports } = await joined(t, {
    'one.ts': 'export const SIZE = 1;',
    'two.ts': 'export const SIZE = 2;',
    'main.ts': `import { SIZE } from './two.ts';\nexport const size = SIZE;`,
  });
  t.equal(exports['size'], 2);
  await t.rejects(
    joined(t, { 'main.ts': 'const SIZE = 1;\nexport const f = (SIZE: number) => SIZE;' }),
    /a constant and something else are called SIZE/,
  );
});
