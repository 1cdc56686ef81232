// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {JobsRegistry} from "../src/JobsRegistry.sol";
import {Naive} from "./Naive.sol";
import {RegistryTest} from "./RegistryTest.sol";
import {Test} from "./Test.sol";

/// @title Somebody who does to a registry whatever its callers can do, right and wrong
contract Handler is RegistryTest {
    /// @notice Each batch's proof as it was when the batch had just been confirmed.
    bytes32[][] private firstProofs;
    bool private paused;
    uint64 private jobs;
    uint16 private extras;

    constructor() {
        deploy(3, 2);
    }

    function confirmSome(uint256 count) external {
        if (paused) return;
        uint32 taken = uint32(bound(count, 1, 6));
        confirm(taken);
        firstProofs.push(Naive.path(commitments, commitments.length - 1));
        jobs += taken;
    }

    function confirmAlone() external {
        if (paused) return;
        confirmOne();
        firstProofs.push(Naive.path(commitments, commitments.length - 1));
        jobs += 1;
    }

    /// @dev Signed by enough confirmers, but not from where the cursor stands.
    function confirmElsewhere(uint64 number, uint64 first) external {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, keccak256("elsewhere"));
        if (number == confirmation.batchNumber && first == confirmation.firstSequence) return;
        (confirmation.batchNumber, confirmation.firstSequence) = (number, first);
        try registry.confirmBatch(confirmation, signed(confirmation, 3)) {
            vm.assertTrue(false, "confirmed elsewhere");
        } catch {}
    }

    /// @dev From where the cursor stands, but by too few.
    function confirmUnsigned(uint256 signers) external {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, keccak256("unsigned"));
        uint256 given = bound(signers, 0, registry.threshold() - 1);
        try registry.confirmBatch(confirmation, signed(confirmation, given)) {
            vm.assertTrue(false, "confirmed unsigned");
        } catch {}
    }

    function changeThreshold(uint256 threshold) external {
        vm.prank(ADMIN);
        registry.setThreshold(uint16(bound(threshold, 1, 3)));
    }

    /// @dev Extra confirmers come and go; the three whose keys we hold stay.
    function toggleConfirmer(uint256 which) external {
        address account = vm.addr(bound(which, 0xF00D, 0xF00F));
        bytes32 role = registry.CONFIRMER_ROLE();
        bool leaves = registry.hasRole(role, account);
        vm.prank(ADMIN);
        leaves ? registry.revokeRole(role, account) : registry.grantRole(role, account);
        extras = leaves ? extras - 1 : extras + 1;
    }

    function togglePause() external {
        vm.prank(PAUSER);
        paused ? registry.unpause() : registry.pause();
        paused = !paused;
    }

    function checkCursor() external view {
        (
            uint64 nextBatch,
            uint64 nextSequence,,
            uint16 threshold,
            uint16 confirmers,
            bool stopped
        ) = registry.cursor();
        vm.assertEq(nextBatch, batches.length + 1, "batches are contiguous");
        vm.assertEq(nextSequence, jobs + 1, "sequences are contiguous");
        vm.assertEq(confirmers, 3 + extras, "confirmers are counted");
        vm.assertTrue(threshold >= 1 && threshold <= confirmers, "the threshold can be met");
        vm.assertTrue(stopped == paused, "paused");
        uint64 expected = 1;
        for (uint256 i = 0; i < batches.length; ++i) {
            vm.assertEq(batches[i].firstSequence, expected, "each sequence in one batch");
            expected += batches[i].jobCount;
        }
    }

    function checkProofs() external view {
        for (uint64 number = 1; number <= batches.length; ++number) {
            JobsRegistry.BatchRef memory batch = batches[number - 1];
            bytes32[] memory present = Naive.path(commitments, number - 1);
            bytes32[] memory first = firstProofs[number - 1];
            for (uint256 level = 0; level < first.length; ++level) {
                vm.assertEq(present[level], first[level], "an old proof is only completed");
            }
            for (uint64 i = 0; i < batch.jobCount; ++i) {
                JobsRegistry.Leaf memory leaf = leafAt(batch.firstSequence + i);
                bytes32[] memory jobProof = Naive.jobPath(trees[number], registry.leafHash(leaf));
                vm.assertTrue(registry.verify(leaf, jobProof, batch, present), "confirmed");
                leaf.resultHash = keccak256("never confirmed");
                vm.assertFalse(registry.verify(leaf, jobProof, batch, present), "unconfirmed");
                leaf = leafAt(jobs + 1 + i);
                vm.assertFalse(registry.verify(leaf, jobProof, batch, present), "not yet");
            }
        }
    }
}

contract RegistryInvariantTest is Test {
    Handler private handler;

    function setUp() public {
        handler = new Handler();
    }

    /// @dev forge asks these two for what to call.
    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function excludeSelectors() public view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        bytes4[] memory selectors = new bytes4[](1);
        selectors[0] = RegistryTest.setUp.selector;
        excluded[0] = FuzzSelector(address(handler), selectors);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function invariant_theSequenceIsContiguous() public view {
        handler.checkCursor();
    }

    /// @dev Once a run, at its end: it proves every job there is.
    function afterInvariant() public view {
        handler.checkProofs();
    }
}
