import { type MessagePort, workerData } from 'node:worker_threads';
import type { Addon } from '../native/index.ts';
import type { IoEngine } from './io-engine.ts';
import { ReactorLoop } from './loop.ts';
import type { WorkerTables } from './model.ts';
import type { ReactorOptions, Report } from './orders.ts';
import { PoolEngine } from './pool-engine.ts';
import { UringEngine } from './uring-engine.ts';

/** What the main thread gives a worker at its start. */
export interface WorkerStart {
  readonly port: MessagePort;
  readonly orderFd: number;
  readonly options: ReactorOptions;
}

/** Be a reactor: returns when ordered to exit. For the first file of a worker thread. */
export function runReactor(addon: Addon, tables: WorkerTables): void {
  const { port, orderFd, options } = workerData as WorkerStart;
  const { engine, note } = chooseEngine(addon, options);
  const loop = new ReactorLoop(addon, engine, tables, port, orderFd, options);
  port.postMessage({ type: 'ready', engine: engine.name, note } satisfies Report);
  rehearse(loop, tables, options);
  loop.run();
  engine.close();
  port.close();
}

/**
 * Be quick before the first request, where that is asked for. Orders are carried out meanwhile, so only
 * requests wait for it. Where it fails, for want of memory or descriptors, all works without it.
 */
export function rehearse(
  loop: Pick<ReactorLoop, 'takeOrders'>,
  tables: WorkerTables,
  options: ReactorOptions,
): void {
  if (!options.rehearse || tables.rehearse === undefined) return;
  const rehearsal = tables.rehearse(tables, options)[Symbol.iterator]();
  while (loop.takeOrders()) {
    try {
      if (rehearsal.next().done === true) return;
    } catch {
      return;
    }
  }
  rehearsal.return?.();
}

/** io_uring where it is allowed; else the pool, with the reason. */
export function chooseEngine(
  addon: Addon,
  options: Pick<ReactorOptions, 'engine' | 'policy'>,
): { engine: IoEngine; note: string | undefined } {
  if (options.engine === 'pool') {
    return { engine: new PoolEngine(addon, options.policy), note: 'asked for' };
  }
  try {
    return { engine: new UringEngine(addon, options.policy), note: undefined };
  } catch (error) {
    return { engine: new PoolEngine(addon, options.policy), note: (error as Error).message };
  }
}
