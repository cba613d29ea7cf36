import { setTimeout as delay } from 'node:timers/promises';
import type { Addon, FdWatcher, OwnedFd } from '../../native/index.ts';
import { buildU64 } from '../../virtio/vhost-user-messages.ts';
import type { VhostBackend } from './backend.ts';
import { Connection } from './connection.ts';
import { carryOut, wantsAck } from './requests.ts';
import { Session } from './session.ts';
import { SocketError, SocketFile, type SocketFileOptions } from './socket-file.ts';

/** After a refused accept (no descriptors left), before the next try. */
const ACCEPT_RETRY_MS = 200;

export interface VhostUserEvents {
  /** A front end has connected. */
  connected?(): void;
  /** It is gone, all it used is let go; `error` tells what ended the connection if it did not leave by itself. */
  disconnected?(error: Error | undefined): void;
  /** Something to log that ends nothing. */
  log?(text: string): void;
}

export type VhostUserServerOptions = SocketFileOptions | { readonly fd: number };

/**
 * Serves a device to one front end after the other; a second one waits in the socket's backlog until
 * the first has left or was thrown out.
 */
export class VhostUserServer {
  /** Resolves when nothing is served any more: after `close`, or when a connection given as a descriptor is over. */
  readonly ended: Promise<void>;
  readonly #addon: Addon;
  readonly #backend: VhostBackend;
  readonly #events: VhostUserEvents;
  readonly #file: SocketFile | undefined;
  #connection: Connection | undefined;
  #watcher: FdWatcher | undefined;
  #wake: (() => void) | undefined;
  #closing = false;

  /** Listen on a path, or take over a descriptor that listens or is connected. Throws a SocketError. */
  static start(
    addon: Addon,
    backend: VhostBackend,
    options: VhostUserServerOptions,
    events: VhostUserEvents = {},
  ): VhostUserServer {
    if ('path' in options) {
      const file = SocketFile.listen(addon, options);
      return new VhostUserServer(addon, backend, events, file.socket, file);
    }
    const { socket, first, listens } = takeOver(addon, options.fd);
    if (listens) return new VhostUserServer(addon, backend, events, socket, undefined, first);
    return new VhostUserServer(addon, backend, events, undefined, undefined, socket);
  }

  private constructor(
    addon: Addon,
    backend: VhostBackend,
    events: VhostUserEvents,
    listener: OwnedFd | undefined,
    file: SocketFile | undefined,
    first?: OwnedFd,
  ) {
    this.#addon = addon;
    this.#backend = backend;
    this.#events = events;
    this.#file = file;
    if (listener !== undefined) {
      this.#watcher = addon.watch(listener.fd, () => this.#wake?.());
    }
    this.ended = this.#run(listener, first).finally(() => {
      this.#watcher?.close();
      if (file !== undefined) file.close();
      else listener?.close();
    });
  }

  /** The socket's path, where it has one. */
  get path(): string | undefined {
    return this.#file?.path;
  }

  /** Drain what is served, end the connection, stop listening, remove the socket file. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#wake?.();
    this.#connection?.end();
    await this.ended;
  }

  async #run(listener: OwnedFd | undefined, first: OwnedFd | undefined): Promise<void> {
    if (first !== undefined) await this.#serve(first);
    if (listener === undefined) return;
    while (!this.#closing) {
      const socket = await this.#accept(listener);
      if (socket !== undefined) await this.#serve(socket);
    }
  }

  /** The next front end, or undefined when there is none (yet). */
  async #accept(listener: OwnedFd): Promise<OwnedFd | undefined> {
    try {
      const socket = this.#addon.unixAccept(listener.fd);
      if (socket !== undefined) return socket;
    } catch (error) {
      this.#events.log?.(`vhost-user: a connection can't be accepted: ${(error as Error).message}`);
      await delay(ACCEPT_RETRY_MS);
      return undefined;
    }
    await new Promise<void>((resolve) => {
      this.#wake = () => {
        this.#wake = undefined;
        resolve();
      };
      this.#watcher!.rearm();
    });
    return undefined;
  }

  async #serve(socket: OwnedFd): Promise<void> {
    const connection = new Connection(this.#addon, socket);
    const session = new Session(this.#addon, this.#backend);
    this.#connection = connection;
    this.#events.connected?.();
    if (this.#closing) connection.end();
    let error: Error | undefined;
    try {
      await converse(connection, session);
    } catch (reason) {
      error = reason as Error;
    }
    connection.close();
    this.#connection = undefined;
    try {
      await session.close();
    } catch (reason) {
      error ??= reason as Error;
    }
    this.#events.disconnected?.(error);
  }
}

/** Carry out requests until the front end leaves. */
async function converse(connection: Connection, session: Session): Promise<void> {
  for (;;) {
    const message = await connection.receive();
    if (message === undefined) return;
    const { request } = message.header;
    try {
      const payload = await carryOut(session, message);
      if (payload !== undefined) connection.reply(request, payload);
    } catch (error) {
      // "Non-zero: failure": one that asked is told before it is thrown out.
      if (wantsAck(session, message)) tryReply(connection, request);
      throw error;
    }
  }
}

function tryReply(connection: Connection, request: number): void {
  try {
    connection.reply(request, buildU64(1n));
  } catch {
    // The error that ends the connection is the one to report.
  }
}

interface TakenOver {
  readonly socket: OwnedFd;
  readonly listens: boolean;
  /** The first front end, if one was waiting. */
  readonly first?: OwnedFd;
}

function adopt(addon: Addon, fd: number): OwnedFd {
  try {
    return addon.adopt(fd);
  } catch (cause) {
    throw new SocketError(
      'ERR_VDUSE_SOCKET_FD',
      `descriptor ${fd}: not open: ${(cause as Error).message} (pass a socket)`,
      { cause },
    );
  }
}

/** Find out whether an inherited descriptor listens or is connected. */
function takeOver(addon: Addon, fd: number): TakenOver {
  const socket = adopt(addon, fd);
  try {
    addon.setNonblocking(fd, true);
    const first = addon.unixAccept(fd);
    return first === undefined ? { socket, listens: true } : { socket, listens: true, first };
  } catch (cause) {
    // accept(2): EINVAL for a stream socket that does not listen.
    const { code, message } = cause as { code?: string; message: string };
    if (code === 'EINVAL') return { socket, listens: false };
    socket.release();
    throw new SocketError(
      'ERR_VDUSE_SOCKET_FD',
      `descriptor ${fd}: neither a listening nor a connected unix stream socket: ${message} (pass a socket)`,
      { cause },
    );
  }
}
