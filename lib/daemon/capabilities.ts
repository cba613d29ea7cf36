import { readFileSync } from 'node:fs';

/** Bit numbers of linux/capability.h. */
export const CAP_NET_ADMIN = 12n;

/** True when this process has the capability in its effective set. */
export function hasCapability(bit: bigint): boolean {
  const status = readFileSync('/proc/self/status', 'utf8');
  const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0';
  return ((BigInt(`0x${effective}`) >> bit) & 1n) === 1n;
}
