import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Addon, FdWatcher, OwnedFd } from '../../native/index.ts';
import { type Message, MessageAssembler } from '../../virtio/vhost-user-assembler.ts';
import {
  buildMessage,
  FLAG_REPLY,
  MAX_TABLE_REGIONS,
  VhostUserError,
  violation,
} from '../../virtio/vhost-user-messages.ts';

/** A message that has begun must be whole within this time; front ends send it in one call. */
const STALL_MS = 10_000;

/** Messages taken in a row before the process gets to do other things. */
const IN_A_ROW = 16;

/** One front end's socket: whole messages in, replies out. */
export class Connection {
  readonly #addon: Addon;
  readonly #socket: OwnedFd;
  readonly #watcher: FdWatcher;
  readonly #assembler = new MessageAssembler<OwnedFd>(MAX_TABLE_REGIONS);
  readonly #stallMs: number;
  #wake: (() => void) | undefined;
  #inARow = 0;
  #closing = false;

  /** Takes ownership of `socket`. */
  constructor(addon: Addon, socket: OwnedFd, stallMs = STALL_MS) {
    this.#addon = addon;
    this.#socket = socket;
    this.#stallMs = stallMs;
    // A socket that was inherited may block, and its flags are shared with whoever passed it on.
    addon.setNonblocking(socket.fd, true);
    this.#watcher = addon.watch(socket.fd, () => this.#wake?.());
  }

  /**
   * The next message, or undefined at the end: the front end left between two messages, or `end` was
   * called. Throws a VhostUserError for what is no message.
   */
  async receive(): Promise<Message<OwnedFd> | undefined> {
    if (this.#inARow++ >= IN_A_ROW) {
      this.#inARow = 0;
      await nextTurn();
    }
    while (!this.#closing) {
      const received = this.#read();
      if (received === undefined) {
        this.#inARow = 0;
        await this.#readable();
        continue;
      }
      if (received.bytes === 0) {
        for (const fd of received.fds) fd.close();
        if (!this.#assembler.partial) return undefined;
        throw new VhostUserError(
          'ERR_VDUSE_VHOST_USER_CLOSED',
          this.#assembler.request,
          'the front end left in the middle of a message',
        );
      }
      const message = this.#assembler.accept(received.bytes, received.fds);
      if (received.truncated) {
        for (const fd of message?.fds ?? []) fd.close();
        throw violation(
          message?.header.request ?? this.#assembler.request,
          `more than ${MAX_TABLE_REGIONS} file descriptors`,
        );
      }
      if (message !== undefined) return message;
    }
    return undefined;
  }

  /** Answer a request. */
  reply(request: number, payload: Uint8Array): void {
    try {
      // No waiting: replies are small, and a front end that leaves so many unread is not served.
      this.#addon.sendMessage(this.#socket.fd, buildMessage(request, FLAG_REPLY, payload), [], 0);
    } catch (cause) {
      throw new VhostUserError(
        'ERR_VDUSE_VHOST_USER_CLOSED',
        request,
        `the front end does not take the reply (${(cause as Error).message})`,
        { cause },
      );
    }
  }

  /** Make `receive` return undefined, now or when it is called next. */
  end(): void {
    this.#closing = true;
    this.#wake?.();
  }

  close(): void {
    this.end();
    this.#assembler.discard();
    this.#watcher.close();
    this.#socket.close();
  }

  #read() {
    try {
      return this.#addon.receiveMessage(this.#socket.fd, this.#assembler.target, MAX_TABLE_REGIONS);
    } catch (cause) {
      throw new VhostUserError(
        'ERR_VDUSE_VHOST_USER_CLOSED',
        this.#assembler.request,
        `the front end's socket failed (${(cause as Error).message})`,
        { cause },
      );
    }
  }

  #readable(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = this.#assembler.partial
        ? setTimeout(() => {
            this.#wake = undefined;
            reject(
              new VhostUserError(
                'ERR_VDUSE_VHOST_USER_TIMEOUT',
                this.#assembler.request,
                `only part of the message came in ${this.#stallMs / 1000} s`,
              ),
            );
          }, this.#stallMs)
        : undefined;
      this.#wake = () => {
        this.#wake = undefined;
        clearTimeout(timer);
        resolve();
      };
      this.#watcher.rearm();
    });
  }
}
