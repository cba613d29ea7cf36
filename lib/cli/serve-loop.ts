import { HeldError, type ServedDevice, type Server } from '../daemon/index.ts';
import { complain, humanSize, say, sayJson } from './output.ts';
import type { StopSignals } from './signals.ts';

export interface Telling {
  /** One JSON object a line. */
  readonly json: boolean;
  /** Tell the queues' counters at the end too. */
  readonly counters: boolean;
}

/** Tell that all is ready, serve until asked to stop (or until serving ends by itself), tell the end. */
export async function serveUntilStopped(
  server: Server,
  { json, counters }: Telling,
  stop: StopSignals,
): Promise<void> {
  const printCounters = () => tellCounters(server, json, 'counters');
  process.on('SIGUSR1', printCounters);
  try {
    for (const device of server.devices) tellReady(device, server, json);
    await untilStopped(server, stop);
  } finally {
    process.off('SIGUSR1', printCounters);
  }
  if (counters) tellCounters(server, json, 'stopped');
}

async function untilStopped(server: Server, stop: StopSignals): Promise<void> {
  const ended = server.ended.then((error) => ({ error }));
  for (let force = false; ; force = true) {
    const end = await Promise.race([stop.next(), ended]);
    if (end?.error !== undefined) throw end.error;
    try {
      const outcomes = await server.stop(force);
      for (const [i, outcome] of outcomes.entries()) {
        if (outcome.device === 'left') tellLeft(server.devices[i]!.name, outcome.resumable);
      }
      return;
    } catch (error) {
      if (!(error instanceof HeldError)) throw error;
      complain(error.message);
    }
  }
}

function tellLeft(name: string, resumable: boolean): void {
  complain(
    resumable
      ? `${name}: still attached: drained and left for the next "vduse serve" of the same image and options`
      : `${name}: still attached, and without a state directory it cannot be taken over (remove it: vdpa dev del ${name}; vduse destroy ${name})`,
  );
}

function tellReady(served: ServedDevice, server: Server, json: boolean): void {
  const { name, transport, device, resumed, node, socket, next } = served;
  const { name: engine, note } = server.engine;
  if (json) {
    sayJson({
      event: 'ready',
      name,
      transport,
      type: device.type,
      size: device.capacity,
      queues: device.queues,
      ...device.facts,
      engine,
      engineNote: note,
      resumed,
      node,
      socket,
      next,
    });
    return;
  }
  const parts = [
    humanSize(device.capacity),
    `${device.queues} queue${device.queues === 1 ? '' : 's'}`,
    ...(device.readOnly ? ['read-only'] : []),
    note === undefined ? engine : `${engine} (io_uring: ${note})`,
  ];
  const where = node === undefined ? '' : `; the disk is ${node}`;
  say(
    `${name}: ${resumed ? 'taken over' : 'ready'}: ${parts.join(', ')}${where}${next === undefined ? '' : `; next: ${next}`}`,
  );
}

function tellCounters(server: Server, json: boolean, event: 'counters' | 'stopped'): void {
  for (const served of server.devices) {
    const queues = served.counters();
    if (json) {
      sayJson({ event, name: served.name, queues });
      continue;
    }
    for (const [index, { requests, bytes, interrupts, errors }] of queues.entries()) {
      say(
        `${served.name}: queue ${index}: ${requests} requests, ${bytes} bytes, ${interrupts} interrupts, ${errors} errors`,
      );
    }
  }
}
