// An engine thread whose end is known before its last answer: it gives none.
import { workerData } from 'node:worker_threads';

const { port } = workerData;
port.postMessage({ type: 'ready', engine: 'none', note: undefined });
port.once('message', () => port.close());
