// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {JobsRegistry} from "../src/JobsRegistry.sol";
import {Naive} from "./Naive.sol";
import {RegistryTest} from "./RegistryTest.sol";

contract VerifyTest is RegistryTest {
    function test_everyConfirmedJobVerifies() public {
        for (uint32 count = 1; count <= 9; ++count) {
            confirm(count);
        }
        for (uint64 number = 1; number <= 9; ++number) {
            JobsRegistry.BatchRef memory batch = batches[number - 1];
            for (uint64 i = 0; i < batch.jobCount; ++i) {
                vm.assertTrue(verifies(leafAt(batch.firstSequence + i), number), "verifies");
            }
        }
    }

    function test_anOldProofIsCompletedNeverReplaced() public {
        confirm(3);
        confirm(2);
        bytes32[] memory old = Naive.path(commitments, 1);
        bytes32[] memory jobProof = Naive.jobPath(trees[2], registry.leafHash(leafAt(4)));
        vm.assertTrue(registry.verify(leafAt(4), jobProof, batches[1], old), "at first");
        for (uint256 i = 0; i < 100; ++i) {
            confirm(1);
            bytes32[] memory present = Naive.path(commitments, 1);
            for (uint256 level = 0; level < old.length; ++level) {
                vm.assertEq(present[level], old[level], "a path only grows at its end");
            }
            vm.assertTrue(registry.verify(leafAt(4), jobProof, batches[1], present), "completed");
            bool same = present.length == old.length;
            bool accepted = registry.verify(leafAt(4), jobProof, batches[1], old);
            vm.assertTrue(accepted == same, "an incomplete proof proves nothing");
            old = present;
        }
    }

    function testFuzz_noOtherLeafVerifies(uint256 field, bytes32 noise) public {
        confirm(5);
        vm.assume(noise != 0);
        JobsRegistry.Leaf memory leaf = leafAt(3);
        field = bound(field, 0, 6);
        if (field == 0) leaf.sequence = 4;
        if (field == 1) leaf.jobId ^= noise;
        if (field == 2) leaf.submitter = address(uint160(uint256(noise)));
        if (field == 3) leaf.tenant ^= noise;
        if (field == 4) leaf.contentHash ^= noise;
        if (field == 5) leaf.resultHash ^= noise;
        if (field == 6) leaf.status = uint8(bound(uint256(noise), 2, 255));
        vm.assume(leaf.submitter != SUBMITTER || field != 2);
        bytes32[] memory jobProof = Naive.jobPath(trees[1], registry.leafHash(leafAt(3)));
        vm.assertFalse(
            registry.verify(leaf, jobProof, batches[0], new bytes32[](0)), "changed leaf"
        );
    }

    function testFuzz_noOtherBatchVerifies(uint256 field, uint64 noise) public {
        confirm(2);
        confirm(5);
        confirm(2);
        vm.assume(noise != 0);
        JobsRegistry.BatchRef memory batch = batches[1];
        field = bound(field, 0, 3);
        if (field == 0) batch.batchNumber ^= noise;
        if (field == 1) batch.firstSequence ^= noise;
        if (field == 2) batch.jobCount ^= uint32(bound(noise, 1, type(uint32).max));
        if (field == 3) batch.jobsRoot ^= bytes32(uint256(noise));
        bytes32[] memory jobProof = Naive.jobPath(trees[2], registry.leafHash(leafAt(4)));
        bytes32[] memory batchProof = Naive.path(commitments, 1);
        vm.assertFalse(registry.verify(leafAt(4), jobProof, batch, batchProof), "changed batch");
    }

    function testFuzz_noOtherProofVerifies(uint256 place, bytes32 noise) public {
        vm.assume(noise != 0);
        for (uint256 i = 0; i < 4; ++i) {
            confirm(4);
        }
        bytes32[] memory jobProof = Naive.jobPath(trees[2], registry.leafHash(leafAt(6)));
        bytes32[] memory batchProof = Naive.path(commitments, 1);
        place = bound(place, 0, 3);
        if (place < 2) jobProof[place] ^= noise;
        else batchProof[place - 2] ^= noise;
        vm.assertFalse(registry.verify(leafAt(6), jobProof, batches[1], batchProof), "changed");
    }

    function testFuzz_whateverIsGivenItAnswers(
        JobsRegistry.Leaf memory leaf,
        bytes32[] memory jobProof,
        JobsRegistry.BatchRef memory batch,
        bytes32[] memory batchProof
    ) public {
        confirm(3);
        vm.assertFalse(registry.verify(leaf, jobProof, batch, batchProof), "unproven");
    }

    function test_aLeafOutsideItsBatchsRangeIsNotProven() public {
        confirm(2);
        // Signers sealed the leaves 2 to 5 into the batch of 3 and 4: the chain does not follow.
        bytes32[] memory hashes = new bytes32[](4);
        for (uint64 i = 0; i < 4; ++i) {
            hashes[i] = registry.leafHash(leafAt(2 + i));
        }
        bytes32[] memory tree = Naive.jobTree(hashes);
        JobsRegistry.BatchConfirmation memory confirmation = next(2, tree[0]);
        registry.confirmBatch(confirmation, signed(confirmation, 2));
        remember(confirmation, tree);
        vm.assertFalse(verifies(leafAt(2), 2), "before it");
        vm.assertTrue(verifies(leafAt(3), 2), "its first");
        vm.assertTrue(verifies(leafAt(4), 2), "its last");
        vm.assertFalse(verifies(leafAt(5), 2), "after it");
    }

    function test_aBatchThatIsNotThereIsNotProven() public view {
        JobsRegistry.BatchRef memory batch =
            JobsRegistry.BatchRef(1, 1, 1, registry.leafHash(leafAt(1)));
        bytes32[] memory none = new bytes32[](0);
        vm.assertFalse(registry.verify(leafAt(1), none, batch, none), "batch to come");
        batch.batchNumber = 0;
        vm.assertFalse(registry.verify(leafAt(1), none, batch, none), "batch zero");
    }

    function test_pausingDoesNotStopVerification() public {
        confirm(2);
        vm.prank(PAUSER);
        registry.pause();
        vm.assertTrue(verifies(leafAt(2), 1), "verifies");
    }

    /// @dev Root, commitment and digest as printed by `merkle_vectors.mjs` (npm merkle-tree, viem)
    /// for two leaves, chain 31337 and this address.
    function test_hashesAreThoseOfIndependentLibraries() public {
        bytes32[] memory hashes = new bytes32[](2);
        for (uint8 i = 0; i < 2; ++i) {
            hashes[i] = registry.leafHash(
                JobsRegistry.Leaf({
                    sequence: i + 1,
                    jobId: bytes32(bytes16(uint128(0x01900000000070008000000000000001) + i)),
                    submitter: address(0xAA),
                    tenant: bytes32(uint256(0x11) * (type(uint256).max / 0xff)),
                    contentHash: bytes32(uint256(0x22) * (type(uint256).max / 0xff)),
                    resultHash: bytes32(uint256(0x33) * (type(uint256).max / 0xff)),
                    status: i + 1
                })
            );
        }
        bytes32 root = Naive.jobTree(hashes)[0];
        vm.assertEq(
            root, 0x6174863cba134ac7df66b6e58fea4b0ebc7f710add6c77a312f8d2d30031820a, "root"
        );
        vm.assertEq(
            registry.commitmentOf(JobsRegistry.BatchRef(1, 1, 2, root)),
            0x943e3535acc60b6572ca32c0038a3dee566e4c735f5c45bf8f9065b7032ca3e2,
            "commitment"
        );
        address elsewhere = 0x5FbDB2315678afecb367f032d93F642f64180aa3;
        vm.etch(elsewhere, address(registry).code);
        vm.assertEq(
            JobsRegistry(elsewhere)
                .hashBatchConfirmation(JobsRegistry.BatchConfirmation(1, 1, 2, root, 4)),
            0x4607a2a969d6eddc7c84fa60a03837904117e0d2296e5f7b064eafa23fd11e58,
            "digest"
        );
    }
}
