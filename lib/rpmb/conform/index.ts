export type { Clause } from './clause.ts';
export type { ConformNote } from './kept-clauses.ts';
export * from './run.ts';
