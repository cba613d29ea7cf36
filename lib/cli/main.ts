#!/usr/bin/env node
import { run } from './run.ts';

// A reader that goes away (`vduse list | head -1`) is no failure of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
});

const status = await run(process.argv.slice(2));
// Serving that ended by itself has threads left, which would keep the process alive.
if (status !== 0) process.exit(status);
