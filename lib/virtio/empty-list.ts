/**
 * To V8 `[]` is a list of small integers until the first object is pushed, which throws away the
 * compiled code that pushes it. This is one of objects from the start.
 */
export function emptyList<T>(): T[] {
  const list: (T | undefined)[] = [undefined];
  list.pop();
  return list as T[];
}
