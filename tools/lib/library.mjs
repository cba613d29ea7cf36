#!/usr/bin/env node
// Compiles the library as `tsc -p CONFIG` does, one file a module, with numbers where the sources name
// constants (inline-numbers.mjs). Called by tools/build.mjs.
import ts from 'typescript';
import { numberTransformer } from './inline-numbers.mjs';

const host = {
  ...ts.sys,
  onUnRecoverableConfigFileDiagnostic: (diagnostic) => fail([diagnostic]),
};
const { options, fileNames, errors } = ts.getParsedCommandLineOfConfigFile(
  process.argv[2],
  {},
  host,
);
const program = ts.createProgram(fileNames, options);
// Declarations are not transformed: they keep the names.
const { diagnostics } = program.emit(undefined, undefined, undefined, undefined, {
  before: [numberTransformer(options.rootDir)],
});
const found = [...errors, ...ts.getPreEmitDiagnostics(program), ...diagnostics];
if (found.length > 0) fail(found);

function fail(all) {
  process.stderr.write(
    ts.formatDiagnostics(all, {
      getCurrentDirectory: ts.sys.getCurrentDirectory,
      getCanonicalFileName: (name) => name,
      getNewLine: () => '\n',
    }),
  );
  process.exit(1);
}
