// Puts the numbers of constants (`const SECTOR_BYTES = 512`) and of tables (`const IoKind = { Read: 0,
// Write: 1 } as const`) where the sources name them: in files that esbuild joins, and in modules that
// TypeScript compiles. V8 does not know that a file's variables never change: at each use it loads the
// variable, for a table checks its shape and loads the entry, and checks that it is a number, which was a
// tenth of the instructions a request takes.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const { SyntaxKind } = ts;
const OPERATIONS = new Map([
  [SyntaxKind.PlusToken, (a, b) => a + b],
  [SyntaxKind.MinusToken, (a, b) => a - b],
  [SyntaxKind.AsteriskToken, (a, b) => a * b],
  [SyntaxKind.SlashToken, (a, b) => a / b],
  [SyntaxKind.AsteriskAsteriskToken, (a, b) => a ** b],
  [SyntaxKind.LessThanLessThanToken, (a, b) => a << b],
  [SyntaxKind.BarToken, (a, b) => a | b],
]);

/** The number an expression stands for, given those of some names; undefined when it is none. */
function evaluate(node, numbers) {
  if (ts.isNumericLiteral(node)) return Number(node.text);
  if (ts.isIdentifier(node)) {
    const known = numbers.get(node.text);
    return typeof known === 'number' ? known : undefined;
  }
  if (ts.isParenthesizedExpression(node)) return evaluate(node.expression, numbers);
  if (ts.isPrefixUnaryExpression(node) && node.operator === SyntaxKind.MinusToken) {
    const operand = evaluate(node.operand, numbers);
    return operand === undefined ? undefined : -operand;
  }
  if (!ts.isBinaryExpression(node)) return undefined;
  const [left, right] = [evaluate(node.left, numbers), evaluate(node.right, numbers)];
  if (left === undefined || right === undefined) return undefined;
  return OPERATIONS.get(node.operatorToken.kind)?.(left, right);
}

/** A table's numbers by key; undefined when it holds anything else. */
function evaluateTable(node, numbers) {
  if (!ts.isAsExpression(node) || !ts.isObjectLiteralExpression(node.expression)) return undefined;
  const entries = node.expression.properties.map((property) =>
    ts.isPropertyAssignment(property) && ts.isIdentifier(property.name)
      ? [property.name.text, evaluate(property.initializer, numbers)]
      : [],
  );
  return entries.some(([, number]) => number === undefined) ? undefined : new Map(entries);
}

const parse = (path) =>
  ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true);

/** The top-level constants of a file, as name, value (a number or a table) and declaration. */
function constants(file, imported) {
  const numbers = new Map(imported);
  const found = [];
  for (const statement of file.statements) {
    if (!ts.isVariableStatement(statement)) continue;
    if ((statement.declarationList.flags & ts.NodeFlags.Const) === 0) continue;
    const exported = statement.modifiers?.some(({ kind }) => kind === SyntaxKind.ExportKeyword);
    for (const { name, initializer } of statement.declarationList.declarations) {
      const value = evaluate(initializer, numbers) ?? evaluateTable(initializer, numbers);
      if (value === undefined) continue;
      numbers.set(name.text, value);
      found.push({ name, value, exported });
    }
  }
  return found;
}

/** The constants a file can name: its own and, of `exported`, what it imports; and its declarations of them. */
function known(file, exported) {
  const numbers = new Map();
  for (const statement of file.statements) {
    if (!ts.isImportDeclaration(statement)) continue;
    const names = statement.importClause?.namedBindings;
    if (names === undefined || !ts.isNamedImports(names)) continue;
    for (const { name, propertyName } of names.elements) {
      const value = exported.get((propertyName ?? name).text);
      if (value !== undefined) numbers.set(name.text, value);
    }
  }
  const own = constants(file, numbers);
  for (const { name, value } of own) numbers.set(name.text, value);
  return { numbers, declarations: new Set(own.map(({ name }) => name)) };
}

/**
 * The expressions of a file that stand for a number, from front to back, each with that number. A second
 * thing of a constant's name is an error.
 */
function uses(file, exported) {
  const { numbers, declarations } = known(file, exported);
  const found = new Map();
  const visit = (node) => {
    if (ts.isTypeNode(node) || ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) return;
    if (ts.isPropertyAccessExpression(node) && ts.isIdentifier(node.expression)) {
      const value = numbers.get(node.expression.text);
      if (value instanceof Map && value.has(node.name.text)) {
        found.set(node, value.get(node.name.text));
        return;
      }
    }
    if (ts.isIdentifier(node) && numbers.has(node.text) && !declarations.has(node)) {
      const { parent } = node;
      if (ts.isPropertyAccessExpression(parent) && parent.name === node) return;
      if (ts.isPropertyAssignment(parent) && parent.name === node) return;
      if ('name' in parent && parent.name === node && !ts.isTypeAliasDeclaration(parent)) {
        throw new Error(`${file.fileName}: a constant and something else are called ${node.text}`);
      }
      const value = numbers.get(node.text);
      if (typeof value === 'number') found.set(node, value);
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  return found;
}

/** What the TypeScript sources in `folder` export. Names that mean two things are left alone. */
function exportedNumbers(folder) {
  const exported = new Map();
  for (const path of readdirSync(folder, { recursive: true })) {
    if (!path.endsWith('.ts')) continue;
    for (const { name, value, exported: shared } of constants(parse(join(folder, path)), [])) {
      if (shared) exported.set(name.text, exported.has(name.text) ? undefined : value);
    }
  }
  return exported;
}

/** For esbuild; `folder` holds the TypeScript sources. */
export function inlineNumbers(folder) {
  const exported = exportedNumbers(folder);
  return {
    name: 'inline-numbers',
    setup(build) {
      build.onLoad({ filter: /\.ts$/ }, ({ path }) => {
        if (!path.startsWith(folder)) return undefined;
        const file = parse(path);
        let { text } = file;
        for (const [node, value] of [...uses(file, exported)].reverse()) {
          text = `${text.slice(0, node.getStart(file))}(${value})${text.slice(node.end)}`;
        }
        return { contents: text, loader: 'ts' };
      });
    },
  };
}

/** The same for TypeScript, as a transformer that comes before its own. */
export function numberTransformer(folder) {
  const exported = exportedNumbers(folder);
  return (context) => (file) => {
    const found = uses(file, exported);
    const visit = (node) => {
      const value = found.get(node);
      if (value === undefined) return ts.visitEachChild(node, visit, context);
      // It stands where the name stood, so the source map leads there.
      return ts.setTextRange(literal(context.factory, value), node);
    };
    return ts.visitNode(file, visit);
  };
}

function literal(factory, value) {
  const digits = factory.createNumericLiteral(Math.abs(value));
  if (value >= 0) return digits;
  return factory.createParenthesizedExpression(
    factory.createPrefixUnaryExpression(SyntaxKind.MinusToken, digits),
  );
}
