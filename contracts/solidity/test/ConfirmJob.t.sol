// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {JobsRegistry} from "../src/JobsRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

contract ConfirmJobTest is RegistryTest {
    function test_aJobIsABatchOfOne() public {
        confirm(4);
        JobsRegistry.Leaf memory leaf = leafAt(5);
        bytes32 root = registry.leafHash(leaf);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, root);
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectEmit(address(registry));
        emit JobsRegistry.BatchConfirmed(2, 5, 1, root, commitmentOf(confirmation));
        vm.expectEmit(address(registry));
        emit JobsRegistry.JobConfirmed(
            leaf.jobId,
            leaf.submitter,
            leaf.tenant,
            5,
            leaf.contentHash,
            leaf.resultHash,
            leaf.status
        );
        confirmJob(leaf, 5, signatures);

        (uint64 nextBatch, uint64 nextSequence,,,,) = registry.cursor();
        vm.assertEq(nextBatch, 3, "batch");
        vm.assertEq(nextSequence, 6, "sequence");
    }

    function test_itsSignaturesServeConfirmBatchAsWell() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, registry.leafHash(leafAt(1)));
        registry.confirmBatch(confirmation, signed(confirmation, 2));
        vm.assertTrue(
            registry.verify(
                leafAt(1),
                new bytes32[](0),
                JobsRegistry.BatchRef(1, 1, 1, confirmation.jobsRoot),
                new bytes32[](0)
            ),
            "verifies"
        );
    }

    function testFuzz_itsNonceIsTheNextSequence(uint64 nonce) public {
        confirm(4);
        vm.assume(nonce != 5);
        JobsRegistry.BatchConfirmation memory confirmation =
            next(1, registry.leafHash(leafAt(nonce)));
        confirmation.firstSequence = nonce;
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.WrongSequence.selector, 5, nonce));
        confirmJob(leafAt(nonce), nonce, signatures);
    }

    function test_aReplayIsRefused() public {
        bytes[] memory signatures = signed(next(1, registry.leafHash(leafAt(1))), 2);
        confirmJob(leafAt(1), 1, signatures);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.WrongSequence.selector, 2, 1));
        confirmJob(leafAt(1), 1, signatures);
    }

    function test_tooFewSignaturesAreRefused() public {
        bytes[] memory signatures = signed(next(1, registry.leafHash(leafAt(1))), 1);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.TooFewSignatures.selector, 2, 1));
        confirmJob(leafAt(1), 1, signatures);
    }

    function test_pausingStopsIt() public {
        bytes[] memory signatures = signed(next(1, registry.leafHash(leafAt(1))), 2);
        vm.prank(PAUSER);
        registry.pause();
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.ConfirmationsPaused.selector));
        confirmJob(leafAt(1), 1, signatures);
    }

    function testFuzz_batchesAndSingleJobsShareOneCursor(uint256 shape) public {
        uint64 expected = 1;
        for (uint256 i = 0; i < 8; ++i) {
            uint32 count = uint32(bound(shape >> (8 * i), 0, 5));
            if (count == 0) {
                confirmOne();
                expected += 1;
            } else {
                confirm(count);
                expected += count;
            }
            (uint64 nextBatch, uint64 nextSequence,,,,) = registry.cursor();
            vm.assertEq(nextBatch, i + 2, "batch");
            vm.assertEq(nextSequence, expected, "sequence");
        }
    }
}
