import type { OwnedFd } from '../../native/index.ts';
import { closeFds, type Message } from '../../virtio/vhost-user-assembler.ts';
import {
  buildU64,
  checkSize,
  MAX_TABLE_REGIONS,
  ProtocolFeature,
  Request,
  VhostUserError,
  violation,
} from '../../virtio/vhost-user-messages.ts';
import { MAX_MEMORY_SLOTS } from './memory-table.ts';
import { type Answer, DONE, OFFERED_PROTOCOL_FEATURES, type Session } from './session.ts';

interface Rule {
  /** The payload is empty. */
  readonly empty?: boolean;
  /** Descriptors that may come with it: at least, at most. Default none. */
  readonly fds?: readonly [number, number];
  /** The protocol feature that must have been accepted. */
  readonly feature?: bigint;
  readonly handle: (session: Session, message: Message<OwnedFd>) => Answer | Promise<Answer>;
}

/** Every request that is understood. The replies are those of vhost-user, "Communication". */
const RULES: Readonly<Record<number, Rule>> = {
  [Request.GetFeatures]: { empty: true, handle: (s) => buildU64(s.offered) },
  [Request.SetFeatures]: { handle: (s, m) => s.setFeatures(m) },
  [Request.SetOwner]: { empty: true, handle: () => DONE },
  // Deprecated: "use it to disable all rings".
  [Request.ResetOwner]: { empty: true, handle: (s) => s.resetRings() },
  [Request.SetMemTable]: { fds: [0, MAX_TABLE_REGIONS], handle: (s, m) => s.setMemTable(m) },
  [Request.SetVringNum]: { handle: (s, m) => s.setVringNum(m) },
  [Request.SetVringAddr]: { handle: (s, m) => s.setVringAddr(m) },
  [Request.SetVringBase]: { handle: (s, m) => s.setVringBase(m) },
  [Request.GetVringBase]: { handle: (s, m) => s.getVringBase(m) },
  [Request.SetVringKick]: { fds: [0, 1], handle: (s, m) => s.setVringKick(m) },
  [Request.SetVringCall]: { fds: [0, 1], handle: (s, m) => s.setVringCall(m) },
  [Request.SetVringErr]: { fds: [0, 1], handle: (s, m) => s.setVringErr(m) },
  [Request.GetProtocolFeatures]: {
    empty: true,
    handle: () => buildU64(OFFERED_PROTOCOL_FEATURES),
  },
  [Request.SetProtocolFeatures]: { handle: (s, m) => s.setProtocolFeatures(m) },
  [Request.GetQueueNum]: { empty: true, handle: (s) => buildU64(BigInt(s.queueCount)) },
  [Request.SetVringEnable]: { handle: (s, m) => s.setVringEnable(m) },
  [Request.GetConfig]: { feature: ProtocolFeature.Config, handle: (s, m) => s.getConfig(m) },
  [Request.SetConfig]: { feature: ProtocolFeature.Config, handle: (s, m) => s.setConfig(m) },
  [Request.ResetDevice]: {
    empty: true,
    feature: ProtocolFeature.ResetDevice,
    handle: (s) => s.resetDevice(),
  },
  [Request.GetMaxMemSlots]: {
    empty: true,
    feature: ProtocolFeature.ConfigureMemSlots,
    handle: () => buildU64(BigInt(MAX_MEMORY_SLOTS)),
  },
  [Request.AddMemReg]: {
    fds: [1, 1],
    feature: ProtocolFeature.ConfigureMemSlots,
    handle: (s, m) => s.addMemReg(m),
  },
  // "The back-end MAY accept messages with one file descriptor" and closes it.
  [Request.RemMemReg]: {
    fds: [0, 1],
    feature: ProtocolFeature.ConfigureMemSlots,
    handle: (s, m) => s.remMemReg(m),
  },
};

/**
 * Carry out a request. Resolves with the payload to answer with, or undefined where no answer is due.
 * What came with the message and was not taken is closed.
 */
export async function carryOut(
  session: Session,
  message: Message<OwnedFd>,
): Promise<Uint8Array | undefined> {
  const { header, fds } = message;
  try {
    const answer = await check(session, message).handle(session, message);
    if (typeof answer !== 'bigint') return answer;
    return wantsAck(session, message) ? buildU64(answer) : undefined;
  } catch (error) {
    if (error instanceof VhostUserError) throw error;
    throw violation(header.request, (error as Error).message, error);
  } finally {
    closeFds(fds);
  }
}

/** Whether the front end waits for an acknowledgement (vhost-user, "REPLY_ACK"). */
export function wantsAck(session: Session, { header }: Message<OwnedFd>): boolean {
  return header.needReply && session.accepted(ProtocolFeature.ReplyAck);
}

function check(session: Session, { header, payload, fds }: Message<OwnedFd>): Rule {
  const { request } = header;
  if (header.reply) throw violation(request, 'a reply, where a request was expected');
  const rule = RULES[request];
  if (rule === undefined) throw violation(request, 'not known here');
  if (rule.feature !== undefined && !session.accepted(rule.feature)) {
    throw violation(request, 'its protocol feature was not negotiated');
  }
  const [least, most] = rule.fds ?? [0, 0];
  if (fds.length < least || fds.length > most) {
    const expected = least === most ? `${least}` : `${least} … ${most}`;
    throw violation(request, `${fds.length} file descriptors, ${expected} expected`);
  }
  if (rule.empty) checkSize(request, payload, 0);
  return rule;
}
