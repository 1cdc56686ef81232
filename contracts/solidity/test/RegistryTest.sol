// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {JobsRegistry} from "../src/JobsRegistry.sol";
import {Naive} from "./Naive.sol";
import {Test} from "./Test.sol";

/// @title A registry with three confirmers, two of whom must sign
abstract contract RegistryTest is Test {
    address internal constant ADMIN = address(0xAD);
    address internal constant PAUSER = address(0x9A);
    address internal constant SUBMITTER = address(0x5B);
    uint48 internal constant ADMIN_DELAY = 1 days;
    bytes32 internal constant TENANT = keccak256("tenant");
    uint256 internal constant CURVE_ORDER =
        0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;

    JobsRegistry internal registry;
    /// @dev Confirmers' keys in the order of their addresses.
    uint256[] internal keys;
    /// @dev What the confirmed batches leave in the logs, in order.
    JobsRegistry.BatchRef[] internal batches;
    bytes32[] internal commitments;
    /// @dev The job trees of the confirmed batches.
    mapping(uint64 batchNumber => bytes32[]) internal trees;

    function setUp() public virtual {
        deploy(3, 2);
    }

    function deploy(uint256 confirmers, uint16 threshold) internal {
        delete keys;
        address[] memory accounts = new address[](confirmers);
        for (uint256 i = 0; i < confirmers; ++i) {
            addKey(0xC0FFEE + i);
            accounts[i] = vm.addr(0xC0FFEE + i);
        }
        registry = new JobsRegistry(ADMIN, ADMIN_DELAY, accounts, threshold, PAUSER);
    }

    /// @dev Keeps the keys in the order in which their signatures must stand.
    function addKey(uint256 key) internal {
        keys.push(key);
        for (uint256 i = keys.length - 1; i > 0; --i) {
            if (vm.addr(keys[i - 1]) < vm.addr(keys[i])) break;
            (keys[i - 1], keys[i]) = (keys[i], keys[i - 1]);
        }
    }

    function leafAt(uint64 sequence) internal pure returns (JobsRegistry.Leaf memory) {
        return JobsRegistry.Leaf({
            sequence: sequence,
            jobId: bytes32(bytes16(keccak256(abi.encode("job", sequence)))),
            submitter: SUBMITTER,
            tenant: TENANT,
            contentHash: keccak256(abi.encode("content", sequence)),
            resultHash: keccak256(abi.encode("result", sequence)),
            status: sequence % 2 == 1 ? 1 : 2
        });
    }

    function treeOver(uint64 first, uint32 count) internal view returns (bytes32[] memory) {
        bytes32[] memory hashes = new bytes32[](count);
        for (uint32 i = 0; i < count; ++i) {
            hashes[i] = registry.leafHash(leafAt(first + i));
        }
        return Naive.jobTree(hashes);
    }

    /// @dev The next batch with this root, as the confirmers ought to sign it.
    function next(uint32 count, bytes32 root)
        internal
        view
        returns (JobsRegistry.BatchConfirmation memory)
    {
        (uint64 nextBatch, uint64 nextSequence, uint32 epoch,,,) = registry.cursor();
        return JobsRegistry.BatchConfirmation(nextBatch, nextSequence, count, root, epoch);
    }

    function signature(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev The first `count` confirmers' signatures.
    function signed(JobsRegistry.BatchConfirmation memory confirmation, uint256 count)
        internal
        view
        returns (bytes[] memory signatures)
    {
        bytes32 digest = registry.hashBatchConfirmation(confirmation);
        signatures = new bytes[](count);
        for (uint256 i = 0; i < count; ++i) {
            signatures[i] = signature(keys[i], digest);
        }
    }

    /// @dev Confirms the next `count` jobs.
    function confirm(uint32 count) internal {
        (, uint64 first,,,,) = registry.cursor();
        bytes32[] memory tree = treeOver(first, count);
        JobsRegistry.BatchConfirmation memory confirmation = next(count, tree[0]);
        registry.confirmBatch(confirmation, signed(confirmation, registry.threshold()));
        remember(confirmation, tree);
    }

    /// @dev Confirms the next job alone.
    function confirmOne() internal {
        (, uint64 sequence,,,,) = registry.cursor();
        JobsRegistry.Leaf memory leaf = leafAt(sequence);
        bytes32[] memory tree = treeOver(sequence, 1);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, tree[0]);
        confirmJob(leaf, sequence, signed(confirmation, registry.threshold()));
        remember(confirmation, tree);
    }

    function confirmJob(JobsRegistry.Leaf memory leaf, uint64 nonce, bytes[] memory signatures)
        internal
    {
        registry.confirmJob(
            leaf.jobId,
            leaf.submitter,
            leaf.tenant,
            leaf.resultHash,
            leaf.contentHash,
            leaf.status,
            nonce,
            signatures
        );
    }

    function remember(JobsRegistry.BatchConfirmation memory confirmation, bytes32[] memory tree)
        internal
    {
        batches.push(
            JobsRegistry.BatchRef(
                confirmation.batchNumber,
                confirmation.firstSequence,
                confirmation.jobCount,
                confirmation.jobsRoot
            )
        );
        commitments.push(commitmentOf(confirmation));
        trees[confirmation.batchNumber] = tree;
    }

    /// @dev Written out, so that the contract's own function is not its own judge.
    function commitmentOf(JobsRegistry.BatchConfirmation memory confirmation)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(
            bytes.concat(
                bytes32(uint256(confirmation.batchNumber)),
                bytes32(uint256(confirmation.firstSequence)),
                bytes32(uint256(confirmation.jobCount)),
                confirmation.jobsRoot
            )
        );
    }

    /// @dev Whether the registry accepts `leaf` with the complete proof of batch number `number`.
    function verifies(JobsRegistry.Leaf memory leaf, uint64 number) internal view returns (bool) {
        bytes32[] memory jobProof =
            Naive.jobPath(trees[number], registry.leafHash(leafAt(leaf.sequence)));
        return
            registry.verify(
                leaf, jobProof, batches[number - 1], Naive.path(commitments, number - 1)
            );
    }
}
