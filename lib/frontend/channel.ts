import type { Addon, FdWatcher, OwnedFd } from '../native/index.ts';
import { closeFds, MessageAssembler } from '../virtio/vhost-user-assembler.ts';
import {
  buildMessage,
  FLAG_NEED_REPLY,
  NO_PAYLOAD,
  parseU64,
  VhostUserError,
  violation,
} from '../virtio/vhost-user-messages.ts';

/** What comes back for a request: a reply of its own, an acknowledgement, or nothing. */
export type Expected = 'reply' | 'ack' | 'nothing';

interface Pending {
  readonly request: number;
  readonly timer: NodeJS.Timeout;
  resolve(payload: Uint8Array): void;
  reject(error: Error): void;
}

/** The front end's side of the socket: one request at a time, each with a time limit. */
export class Channel {
  readonly #addon: Addon;
  readonly #socket: OwnedFd;
  readonly #watcher: FdWatcher;
  readonly #timeoutMs: number;
  /** Told once why nothing more goes over the connection. */
  onClosed: ((error: Error) => void) | undefined;
  readonly #assembler = new MessageAssembler<OwnedFd>(0);
  #pending: Pending | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #error: Error | undefined;

  /** Takes ownership of `socket`. */
  constructor(addon: Addon, socket: OwnedFd, timeoutMs: number) {
    this.#addon = addon;
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
    addon.setNonblocking(socket.fd, true);
    this.#watcher = addon.watch(socket.fd, () => this.#readable());
    // Always: that the back end has gone must be seen when nothing is asked of it, too.
    this.#watcher.rearm();
  }

  /** Send a request; resolves with the payload of its reply (empty where none is expected). */
  request(
    request: number,
    payload: Uint8Array,
    fds: readonly number[],
    expected: Expected,
  ): Promise<Uint8Array> {
    const answer = this.#last.then(() => this.#exchange(request, payload, fds, expected));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  /** End the connection; what is waited for is rejected with `error`. */
  close(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.#assembler.discard();
    this.#watcher.close();
    this.#socket.close();
    this.#take()?.reject(error);
    this.onClosed?.(error);
  }

  async #exchange(
    request: number,
    payload: Uint8Array,
    fds: readonly number[],
    expected: Expected,
  ): Promise<Uint8Array> {
    if (this.#error !== undefined) throw this.#error;
    const answer = expected === 'nothing' ? Promise.resolve(NO_PAYLOAD) : this.#expect(request);
    try {
      const flags = expected === 'ack' ? FLAG_NEED_REPLY : 0;
      const bytes = buildMessage(request, flags, payload);
      this.#addon.sendMessage(this.#socket.fd, bytes, fds, this.#timeoutMs);
    } catch (cause) {
      this.close(
        new VhostUserError(
          'ERR_VDUSE_VHOST_USER_CLOSED',
          request,
          `the back end does not take it (${(cause as Error).message})`,
          { cause },
        ),
      );
    }
    const reply = await answer;
    if (expected === 'nothing' && this.#error !== undefined) throw this.#error;
    if (expected === 'ack' && parseU64(request, reply) !== 0n) {
      throw new VhostUserError(
        'ERR_VDUSE_VHOST_USER_REFUSED',
        request,
        'refused by the back end (see its log)',
      );
    }
    return reply;
  }

  #expect(request: number): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // A late reply would be taken for that of the next request: nothing more can be asked.
        this.close(
          new VhostUserError(
            'ERR_VDUSE_VHOST_USER_TIMEOUT',
            request,
            `no answer from the back end in ${this.#timeoutMs / 1000} s`,
          ),
        );
      }, this.#timeoutMs);
      this.#pending = { request, timer, resolve, reject };
    });
  }

  #take(): Pending | undefined {
    const pending = this.#pending;
    this.#pending = undefined;
    clearTimeout(pending?.timer);
    return pending;
  }

  #readable(): void {
    try {
      while (this.#error === undefined && this.#read());
    } catch (error) {
      this.close(error as Error);
    }
    if (this.#error === undefined) this.#watcher.rearm();
  }

  /** False when there is nothing more to read for now. */
  #read(): boolean {
    const received = this.#receive();
    if (received === undefined) return false;
    if (received.bytes === 0) {
      closeFds([...received.fds]);
      throw new VhostUserError(
        'ERR_VDUSE_VHOST_USER_CLOSED',
        this.#pending?.request,
        'the back end has closed the connection (see its log)',
      );
    }
    const message = this.#assembler.accept(received.bytes, received.fds);
    if (message === undefined) return true;
    const { request, reply } = message.header;
    if (!reply || request !== this.#pending?.request) {
      throw violation(request, 'comes unasked from the back end');
    }
    this.#take()!.resolve(message.payload);
    return true;
  }

  #receive() {
    try {
      // No message to a front end on this socket carries a descriptor; one is room to notice it.
      return this.#addon.receiveMessage(this.#socket.fd, this.#assembler.target, 1);
    } catch (cause) {
      throw new VhostUserError(
        'ERR_VDUSE_VHOST_USER_CLOSED',
        this.#pending?.request,
        `the connection to the back end failed (${(cause as Error).message})`,
        { cause },
      );
    }
  }
}
