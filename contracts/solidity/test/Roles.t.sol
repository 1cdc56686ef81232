// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {
    IAccessControlDefaultAdminRules
} from "@openzeppelin/contracts/access/extensions/IAccessControlDefaultAdminRules.sol";
import {JobsRegistry} from "../src/JobsRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

contract RolesTest is RegistryTest {
    uint256 private constant NEW_KEY = 0xBEEF;
    bytes32 private confirmerRole;
    bytes32 private pauserRole;

    function setUp() public override {
        super.setUp();
        confirmerRole = registry.CONFIRMER_ROLE();
        pauserRole = registry.PAUSER_ROLE();
    }

    function signers() private view returns (uint32 epoch, uint16 threshold, uint16 confirmers) {
        (,, epoch, threshold, confirmers,) = registry.cursor();
    }

    function expectSigners(uint16 threshold, uint16 confirmers) private {
        (uint32 epoch,,) = signers();
        vm.expectEmit(address(registry));
        emit JobsRegistry.SignersChanged(epoch + 1, threshold, confirmers);
    }

    function expectUnauthorized(address account, bytes32 role) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControl.AccessControlUnauthorizedAccount.selector, account, role
            )
        );
    }

    function test_aNewConfirmerBumpsTheEpochAndCanSign() public {
        vm.expectEmit(address(registry));
        emit IAccessControl.RoleGranted(confirmerRole, vm.addr(NEW_KEY), ADMIN);
        expectSigners(2, 4);
        vm.prank(ADMIN);
        registry.grantRole(confirmerRole, vm.addr(NEW_KEY));
        addKey(NEW_KEY);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, bytes32(0));
        registry.confirmBatch(confirmation, signed(confirmation, 4));
    }

    function test_everyChangeOfSignersVoidsEarlierSignatures() public {
        address last = vm.addr(keys[2]);
        bytes[3] memory changes = [
            abi.encodeCall(registry.setThreshold, 2),
            abi.encodeCall(registry.revokeRole, (confirmerRole, last)),
            abi.encodeCall(registry.grantRole, (confirmerRole, last))
        ];
        for (uint256 i = 0; i < changes.length; ++i) {
            JobsRegistry.BatchConfirmation memory confirmation = next(1, bytes32(0));
            uint32 epoch = confirmation.signerEpoch;
            bytes[] memory signatures = signed(confirmation, 2);
            vm.prank(ADMIN);
            (bool done,) = address(registry).call(changes[i]);
            vm.assertTrue(done, "changed");
            vm.expectRevert(
                abi.encodeWithSelector(JobsRegistry.WrongEpoch.selector, epoch + 1, epoch)
            );
            registry.confirmBatch(confirmation, signatures);
        }
        confirm(1);
    }

    function test_grantingOrRevokingNothingChangesNothing() public {
        (uint32 epoch,,) = signers();
        vm.prank(ADMIN);
        registry.grantRole(confirmerRole, vm.addr(keys[0]));
        vm.prank(ADMIN);
        registry.revokeRole(confirmerRole, vm.addr(NEW_KEY));
        vm.prank(ADMIN);
        registry.grantRole(pauserRole, vm.addr(NEW_KEY));
        (uint32 present,, uint16 confirmers) = signers();
        vm.assertEq(present, epoch, "epoch");
        vm.assertEq(confirmers, 3, "confirmers");
    }

    function test_aRevokedConfirmersSignatureIsRefused() public {
        address revoked = vm.addr(keys[0]);
        expectSigners(2, 2);
        vm.prank(ADMIN);
        registry.revokeRole(confirmerRole, revoked);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, bytes32(0));
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.NotAConfirmer.selector, revoked));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_fewerConfirmersThanTheThresholdAreRefused() public {
        vm.prank(ADMIN);
        registry.revokeRole(confirmerRole, vm.addr(keys[0]));
        address second = vm.addr(keys[1]);
        bytes memory refusal = abi.encodeWithSelector(JobsRegistry.InvalidThreshold.selector, 2, 1);
        vm.expectRevert(refusal);
        vm.prank(ADMIN);
        registry.revokeRole(confirmerRole, second);
        vm.expectRevert(refusal);
        vm.prank(second);
        registry.renounceRole(confirmerRole, second);
    }

    function test_aConfirmerMayRenounceWhereEnoughRemain() public {
        address first = vm.addr(keys[0]);
        expectSigners(2, 2);
        vm.prank(first);
        registry.renounceRole(confirmerRole, first);
        vm.assertFalse(registry.hasRole(confirmerRole, first), "renounced");
    }

    function testFuzz_theThresholdIsBetweenOneAndTheConfirmers(uint16 threshold) public {
        bool valid = threshold >= 1 && threshold <= 3;
        if (valid) {
            expectSigners(threshold, 3);
        } else {
            vm.expectRevert(
                abi.encodeWithSelector(JobsRegistry.InvalidThreshold.selector, threshold, 3)
            );
        }
        vm.prank(ADMIN);
        registry.setThreshold(threshold);
        vm.assertEq(registry.threshold(), valid ? threshold : 2, "threshold");
    }

    function test_theZeroAddressIsNoConfirmer() public {
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.InvalidConfirmer.selector, address(0)));
        vm.prank(ADMIN);
        registry.grantRole(confirmerRole, address(0));
    }

    function test_theConstructorChecksItsConfirmers() public {
        address[] memory accounts = new address[](2);
        (accounts[0], accounts[1]) = (address(1), address(1));
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.InvalidConfirmer.selector, address(1)));
        new JobsRegistry(ADMIN, ADMIN_DELAY, accounts, 1, PAUSER);
        accounts[1] = address(2);
        for (uint16 threshold = 0; threshold <= 3; threshold += 3) {
            vm.expectRevert(
                abi.encodeWithSelector(JobsRegistry.InvalidThreshold.selector, threshold, 2)
            );
            new JobsRegistry(ADMIN, ADMIN_DELAY, accounts, threshold, PAUSER);
        }
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControlDefaultAdminRules.AccessControlInvalidDefaultAdmin.selector,
                address(0)
            )
        );
        new JobsRegistry(address(0), ADMIN_DELAY, accounts, 1, PAUSER);
    }

    function testFuzz_onlyTheAdminManages(address caller) public {
        vm.assume(caller != ADMIN);
        bytes32 adminRole = registry.DEFAULT_ADMIN_ROLE();
        expectUnauthorized(caller, adminRole);
        vm.prank(caller);
        registry.setThreshold(1);
        expectUnauthorized(caller, adminRole);
        vm.prank(caller);
        registry.grantRole(confirmerRole, caller);
        expectUnauthorized(caller, adminRole);
        vm.prank(caller);
        registry.revokeRole(pauserRole, PAUSER);
    }

    function testFuzz_onlyThePauserPauses(address caller) public {
        vm.assume(caller != PAUSER);
        expectUnauthorized(caller, pauserRole);
        vm.prank(caller);
        registry.pause();
        expectUnauthorized(caller, pauserRole);
        vm.prank(caller);
        registry.unpause();
    }

    function test_pausingIsLoggedAndNotRepeated() public {
        vm.expectEmit(address(registry));
        emit JobsRegistry.Paused(PAUSER);
        vm.prank(PAUSER);
        registry.pause();
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.ConfirmationsPaused.selector));
        vm.prank(PAUSER);
        registry.pause();

        vm.expectEmit(address(registry));
        emit JobsRegistry.Unpaused(PAUSER);
        vm.prank(PAUSER);
        registry.unpause();
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.ConfirmationsNotPaused.selector));
        vm.prank(PAUSER);
        registry.unpause();
    }

    function test_theAdminIsHandedOverInTwoStepsWithADelay() public {
        address heir = address(0x4E);
        vm.prank(ADMIN);
        registry.beginDefaultAdminTransfer(heir);
        uint256 begun = block.timestamp;
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControlDefaultAdminRules.AccessControlEnforcedDefaultAdminDelay.selector,
                begun + ADMIN_DELAY
            )
        );
        vm.prank(heir);
        registry.acceptDefaultAdminTransfer();
        vm.warp(begun + ADMIN_DELAY + 1);
        vm.prank(heir);
        registry.acceptDefaultAdminTransfer();
        vm.assertEq(registry.defaultAdmin(), heir, "admin");
        expectUnauthorized(ADMIN, registry.DEFAULT_ADMIN_ROLE());
        vm.prank(ADMIN);
        registry.setThreshold(1);
    }
}
