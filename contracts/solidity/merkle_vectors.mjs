// An independent oracle for the Rust tests: the leaves' tree by npm @openzeppelin/merkle-tree, the
// commitment and the EIP-712 digest by viem. JSON on stdin, JSON on stdout:
//
//   in   {leaves: [{sequence, jobId, submitter, tenant, contentHash, resultHash, status}],
//         domain?: {chainId, verifyingContract},
//         batch?: {batchNumber, firstSequence, jobCount?, jobsRoot?, signerEpoch}}
//   out  {root, leafHashes, proofs, commitment?, eip712Digest?}
//
// Proofs stand in the order of the leaves given. A batch's root and count are the leaves' unless
// they are given; the digest needs the domain. Numbers may be JSON numbers or decimal strings.

import { readFileSync } from "node:fs";
import { StandardMerkleTree } from "@openzeppelin/merkle-tree";
import { encodeAbiParameters, hashTypedData, keccak256 } from "viem";

const LEAF = {
  sequence: "uint64",
  jobId: "bytes32",
  submitter: "address",
  tenant: "bytes32",
  contentHash: "bytes32",
  resultHash: "bytes32",
  status: "uint8",
};
const BATCH = {
  batchNumber: "uint64",
  firstSequence: "uint64",
  jobCount: "uint32",
  jobsRoot: "bytes32",
};
const SIGNED = { ...BATCH, signerEpoch: "uint32" };

const { leaves, domain, batch } = JSON.parse(readFileSync(0, "utf8"));

const values = leaves.map((leaf) => Object.keys(LEAF).map((field) => leaf[field]));
const tree = StandardMerkleTree.of(values, Object.values(LEAF));
const out = {
  root: tree.root,
  leafHashes: values.map((value) => tree.leafHash(value)),
  proofs: values.map((_, index) => tree.getProof(index)),
};

if (batch) {
  const message = { jobCount: leaves.length, jobsRoot: tree.root, ...batch };
  const integer = (field, type) => (type.startsWith("uint") ? BigInt(field) : field);
  const words = Object.entries(BATCH).map(([name, type]) => integer(message[name], type));
  out.commitment = keccak256(
    encodeAbiParameters(Object.values(BATCH).map((type) => ({ type })), words),
  );
  if (domain) {
    out.eip712Digest = hashTypedData({
      domain: { name: "JobsRegistry", version: "1", ...domain, chainId: Number(domain.chainId) },
      types: {
        BatchConfirmation: Object.entries(SIGNED).map(([name, type]) => ({ name, type })),
      },
      primaryType: "BatchConfirmation",
      message,
    });
  }
}

console.log(JSON.stringify(out, null, 2));
