// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {JobsRegistry} from "../src/JobsRegistry.sol";
import {Naive} from "./Naive.sol";
import {RegistryTest} from "./RegistryTest.sol";

contract AccessTest is RegistryTest {
    address private constant GRANTEE = address(0x6E);
    bytes32[] private none;

    function setUp() public override {
        super.setUp();
        confirmOne();
    }

    function test_theSubmitterGrantsAccess() public {
        bytes32 jobId = leafAt(1).jobId;
        vm.assertFalse(registry.hasAccess(jobId, GRANTEE), "before");
        vm.expectEmit(address(registry));
        emit JobsRegistry.AccessGranted(jobId, SUBMITTER, GRANTEE);
        vm.prank(SUBMITTER);
        registry.grantAccess(leafAt(1), none, batches[0], none, GRANTEE);
        vm.assertTrue(registry.hasAccess(jobId, GRANTEE), "after");
        vm.assertFalse(registry.hasAccess(jobId, address(0xBAD)), "to nobody else");
        vm.assertFalse(registry.hasAccess(leafAt(2).jobId, GRANTEE), "to no other job");
    }

    function testFuzz_nobodyElseDoes(address caller) public {
        vm.assume(caller != SUBMITTER);
        JobsRegistry.Leaf memory leaf = leafAt(1);
        vm.expectRevert(
            abi.encodeWithSelector(JobsRegistry.NotSubmitter.selector, SUBMITTER, caller)
        );
        vm.prank(caller);
        registry.grantAccess(leaf, none, batches[0], none, GRANTEE);
    }

    function testFuzz_noneByClaimingToBeTheSubmitter(address caller) public {
        vm.assume(caller != SUBMITTER);
        JobsRegistry.Leaf memory leaf = leafAt(1);
        leaf.submitter = caller;
        vm.expectRevert(
            abi.encodeWithSelector(JobsRegistry.NotProven.selector, leaf.jobId, leaf.sequence)
        );
        vm.prank(caller);
        registry.grantAccess(leaf, none, batches[0], none, GRANTEE);
    }

    function test_pausingDoesNotStopGrants() public {
        vm.prank(PAUSER);
        registry.pause();
        vm.prank(SUBMITTER);
        registry.grantAccess(leafAt(1), none, batches[0], none, GRANTEE);
        vm.assertTrue(registry.hasAccess(leafAt(1).jobId, GRANTEE), "granted");
    }

    function test_anOldProofMustBeCompleted() public {
        confirmOne();
        JobsRegistry.Leaf memory leaf = leafAt(1);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.NotProven.selector, leaf.jobId, 1));
        vm.prank(SUBMITTER);
        registry.grantAccess(leaf, none, batches[0], none, GRANTEE);
        bytes32[] memory present = Naive.path(commitments, 0);
        vm.prank(SUBMITTER);
        registry.grantAccess(leaf, none, batches[0], present, GRANTEE);
        vm.assertTrue(registry.hasAccess(leaf.jobId, GRANTEE), "granted");
    }
}
