/** One line on stderr, in the form `vduse: what: why (what to do)`. */
export function complain(text: string): void {
  process.stderr.write(`vduse: ${text.replaceAll(/\s*\n\s*/g, ' ')}\n`);
}

/** One line on stdout. */
export function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** One JSON object on a line of its own. */
export function sayJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

/** Bytes as people read them: the largest unit that leaves no fraction. */
export function humanSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (value % 1024 === 0 && value > 0 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value} ${units[unit]}`;
}
