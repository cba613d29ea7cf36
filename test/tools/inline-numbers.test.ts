import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { SourceMap } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';
import t, { type Test } from 'tap';

const TOOL = new URL('../../tools/lib/inline-numbers.mjs', import.meta.url).href;
const { inlineNumbers } = (await import(TOOL)) as { inlineNumbers(folder: string): Plugin };

const COMPILER = fileURLToPath(new URL('../../tools/lib/library.mjs', import.meta.url));

/** A folder lib of these files; its place. */
function sources(t: Test, files: Record<string, string>): string {
  const folder = join(t.testdir(), 'lib');
  mkdirSync(folder);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return folder;
}

/** What the joined files export, and their text. */
async function joined(t: Test, files: Record<string, string>) {
  const folder = sources(t, files);
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

/** Compiles the files as the library; what the compiler said, and where what it made lies. */
function compiled(t: Test, files: Record<string, string>) {
  const folder = sources(t, files);
  const config = join(folder, '../tsconfig.json');
  const compilerOptions = {
    rootDir: 'lib',
    outDir: 'dist',
    target: 'es2023',
    module: 'esnext',
    types: [],
    strict: true,
    noEmitOnError: true,
    verbatimModuleSyntax: true,
    rewriteRelativeImportExtensions: true,
    declaration: true,
    sourceMap: true,
  };
  writeFileSync(join(folder, '../package.json'), '{ "type": "module" }');
  writeFileSync(config, JSON.stringify({ compilerOptions, include: ['lib'] }));
  const { status, stderr } = spawnSync(process.execPath, [COMPILER, config], { encoding: 'utf8' });
  const made = (name: string) => join(folder, '../dist', name);
  return { status, stderr, made, read: (name: string) => readFileSync(made(name), 'utf8') };
}

const USER = `import { BYTES, Kind } from './tables.ts';
export const take = (kind: Kind): number => {
  if (kind === Kind.Low) return (-Kind.Low) ** 2; else throw new Error(\`no \${BYTES}\`);
};
export const bytes = BYTES;
export { Kind };
`;

t.test('compiled file by file: numbers in the code, names in types and maps', async (t) => {
  const { status, stderr, made, read } = compiled(t, {
    'tables.ts': TABLES,
    'main.ts': USER,
  });
  t.same({ status, stderr }, { status: 0, stderr: '' });
  const text = read('main.js');
  t.notMatch(text, /Kind\.Low|\{BYTES\}|= BYTES/);
  const { take, bytes, Kind } = await import(made('main.js'));
  t.same([take(-7), bytes, Kind.Write], [49, 64, 1]);
  t.match(read('main.d.ts'), 'take: (kind: Kind) => number');
  t.match(read('tables.d.ts'), 'readonly Low: -7');
  t.match(read('tables.js'), '/** Kinds. */');

  // What comes behind a number on its line is found where it stands in the source.
  const map = new SourceMap(JSON.parse(read('main.js.map')));
  const place = (of: string, what: string) => {
    const before = of.slice(0, of.indexOf(what)).split('\n');
    return { line: before.length - 1, column: before.at(-1)!.length };
  };
  for (const what of ['new Error', 'throw']) {
    const { line, column } = place(text, what);
    const entry = map.findEntry(line, column) as { originalLine: number; originalColumn: number };
    const found = { line: entry.originalLine, column: entry.originalColumn };
    t.same(found, place(USER, what), what);
  }
});

t.test('compiled file by file: errors are told, and end it', async (t) => {
  const wrong = compiled(t, { 'main.ts': 'export const SIZE: string = 1;' });
  t.equal(wrong.status, 1);
  t.match(wrong.stderr, /main\.ts.*error TS2322/);
});
