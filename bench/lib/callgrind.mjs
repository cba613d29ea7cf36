// What valgrind's callgrind counted: instructions by function.
import { readFileSync } from 'node:fs';

/**
 * Instructions each function executed itself, of a callgrind.out file: a Map from "object: function". With
 * V8's map of its code (--perf-basic-prof), functions of compiled JavaScript are named "JS: file".
 */
export function readCounts(file, mapFile) {
  const code = mapFile === undefined ? [] : readMap(mapFile);
  const names = { ob: new Map(), fn: new Map() };
  const counts = new Map();
  let object = '';
  let name = '';
  let skip = false;
  for (const line of readFileSync(file, 'latin1').split('\n')) {
    const [, kind, id, text] = /^(c?ob|c?fn)=\((\d+)\)(?: (.*))?$/.exec(line) ?? [];
    if (kind !== undefined) {
      const known = names[kind.slice(-2)];
      if (text !== undefined) known.set(id, text);
      if (kind === 'ob') object = known.get(id);
      else if (kind === 'fn') name = nameOf(object, known.get(id), code);
    } else if (line.startsWith('calls=')) {
      // The next line is what was called, in all.
      skip = true;
    } else if (/^[+\-*\d]/.test(line)) {
      if (!skip) counts.set(name, (counts.get(name) ?? 0) + Number(line.split(' ')[1]));
      skip = false;
    }
  }
  return counts;
}

/** What `after` counts more than `before`, for each of so many. */
export function difference(before, after, requests) {
  const each = new Map();
  for (const [name, count] of after) each.set(name, (count - (before.get(name) ?? 0)) / requests);
  return each;
}

function readMap(file) {
  return readFileSync(file, 'latin1')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [, start, size, name] = /^(\S+) (\S+) (.*)$/.exec(line);
      return { start: Number.parseInt(start, 16), size: Number.parseInt(size, 16), name };
    });
}

function nameOf(object, name, code) {
  const address = /^0x([0-9a-f]+)/.exec(name)?.[1];
  if (address !== undefined) {
    const at = Number.parseInt(address, 16);
    // The last: code is collected, and its place used again.
    const found = code.findLast(({ start, size }) => start <= at && at < start + size)?.name;
    const script = /([^/\s]+\/[^/\s]+):\d+:\d+$/.exec(found ?? '')?.[1];
    if (script !== undefined) return `JS: ${script}`;
  }
  return `${object?.split('/').at(-1)}: ${name}`;
}
