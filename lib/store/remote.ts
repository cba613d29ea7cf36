import { statfsSync } from 'node:fs';

/** statfs(2) types whose reads and writes wait for a network or another process. */
const REMOTE_FILE_SYSTEMS = new Set([
  0x6969, // NFS
  0xff534d42, // CIFS
  0xfe534d42, // SMB2
  0x65735546, // FUSE
  0x01021997, // 9p
  0x00c36400, // Ceph
  0x5346414f, // AFS
]);

/** Whether I/O on the file at `path` may wait for more than a disk of this machine. */
export function isRemote(path: string): boolean {
  return REMOTE_FILE_SYSTEMS.has(statfsSync(path).type);
}
