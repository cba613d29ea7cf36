/** Print rows (arrays of cells) under a heading, columns aligned: text left, numbers right. */
export function table(heading, rows) {
  const cells = [heading, ...rows].map((row) => row.map(text));
  const widths = heading.map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  const line = (row, original) =>
    `| ${row
      .map((cell, i) =>
        typeof original[i] === 'number' ? cell.padStart(widths[i]) : cell.padEnd(widths[i]),
      )
      .join(' | ')} |`;
  const out = [line(cells[0], heading), `|${widths.map((w) => '-'.repeat(w + 2)).join('|')}|`];
  for (const [i, row] of rows.entries()) out.push(line(cells[i + 1], row));
  console.log(out.join('\n'));
}

function text(cell) {
  if (cell === undefined) return '–';
  if (typeof cell !== 'number') return String(cell);
  if (Number.isInteger(cell)) return String(cell);
  if (Math.abs(cell) >= 100) return cell.toFixed(0);
  return Math.abs(cell) >= 10 ? cell.toFixed(1) : cell.toFixed(2);
}

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** What was run, where and how, of a result as `--json` prints it. */
export function printRun({ machine: m, versions, load, pinned, commands }) {
  console.log(
    `${m.cpu}, ${m.cpus} CPUs, Linux ${m.kernel}, ${m.fileSystem}, load ${m.load.toFixed(1)}, ${m.date}`,
  );
  console.log(Object.values(versions).join('; '));
  console.log(pinned === undefined ? load : `${load}; ${pinned}`);
  for (const [name, line] of Object.entries(commands)) console.log(`${name}: ${line}`);
  console.log();
}
