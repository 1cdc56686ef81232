// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {JobsRegistry} from "../src/JobsRegistry.sol";
import {RegistryTest} from "./RegistryTest.sol";

contract ConfirmBatchTest is RegistryTest {
    bytes32 private constant ROOT = keccak256("root");

    function test_numbersStartAtOne() public view {
        (uint64 nextBatch, uint64 nextSequence,, uint16 threshold, uint16 confirmers, bool paused) =
            registry.cursor();
        vm.assertEq(nextBatch, 1, "batch");
        vm.assertEq(nextSequence, 1, "sequence");
        vm.assertEq(threshold, 2, "threshold");
        vm.assertEq(confirmers, 3, "confirmers");
        vm.assertFalse(paused, "paused");
        vm.assertEq(registry.batchCount(), 0, "count");
    }

    function test_aBatchMovesTheCursorAndIsLogged() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(7, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectEmit(address(registry));
        emit JobsRegistry.BatchConfirmed(1, 1, 7, ROOT, commitmentOf(confirmation));
        registry.confirmBatch(confirmation, signatures);

        (uint64 nextBatch, uint64 nextSequence,,,,) = registry.cursor();
        vm.assertEq(nextBatch, 2, "batch");
        vm.assertEq(nextSequence, 8, "sequence");
        vm.assertEq(registry.batchCount(), 1, "count");
        vm.assertEq(registry.peaks(0), commitmentOf(confirmation), "peak");
    }

    function test_anyoneMaySubmitAndMoreThanEnoughMaySign() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 3);
        vm.prank(address(0xDEAD));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_aReplayIsRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        registry.confirmBatch(confirmation, signatures);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.WrongBatch.selector, 2, 1));
        registry.confirmBatch(confirmation, signatures);
    }

    function testFuzz_onlyTheNextBatchIsTaken(uint64 number) public {
        vm.assume(number != 1);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        confirmation.batchNumber = number;
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.WrongBatch.selector, 1, number));
        registry.confirmBatch(confirmation, signatures);
    }

    function testFuzz_onlyTheNextSequenceIsTaken(uint64 first) public {
        vm.assume(first != 1);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        confirmation.firstSequence = first;
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.WrongSequence.selector, 1, first));
        registry.confirmBatch(confirmation, signatures);
    }

    function testFuzz_onlyThePresentEpochIsTaken(uint32 epoch) public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        uint32 present = confirmation.signerEpoch;
        vm.assume(epoch != present);
        confirmation.signerEpoch = epoch;
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.WrongEpoch.selector, present, epoch));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_anEmptyBatchIsRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(0, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.EmptyBatch.selector, 1));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_tooFewSignaturesAreRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        for (uint256 given = 0; given < 2; ++given) {
            bytes[] memory signatures = signed(confirmation, given);
            vm.expectRevert(
                abi.encodeWithSelector(JobsRegistry.TooFewSignatures.selector, 2, given)
            );
            registry.confirmBatch(confirmation, signatures);
        }
    }

    function test_oneSignerTwiceIsRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        signatures[1] = signatures[0];
        address signer = vm.addr(keys[0]);
        vm.expectRevert(
            abi.encodeWithSelector(JobsRegistry.SignersNotAscending.selector, signer, signer)
        );
        registry.confirmBatch(confirmation, signatures);
    }

    function test_signersOutOfOrderAreRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        (signatures[0], signatures[1]) = (signatures[1], signatures[0]);
        vm.expectRevert(
            abi.encodeWithSelector(
                JobsRegistry.SignersNotAscending.selector, vm.addr(keys[1]), vm.addr(keys[0])
            )
        );
        registry.confirmBatch(confirmation, signatures);
    }

    function testFuzz_aStrangersSignatureIsRefused(uint256 key) public {
        key = bound(key, 1, CURVE_ORDER - 1);
        address stranger = vm.addr(key);
        vm.assume(!registry.hasRole(registry.CONFIRMER_ROLE(), stranger));
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        signatures[0] = signature(key, registry.hashBatchConfirmation(confirmation));
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.NotAConfirmer.selector, stranger));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_aSignatureForAnotherChainIsRefused() public {
        uint256 here = block.chainid;
        vm.chainId(here + 1);
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        vm.chainId(here);
        refusesStrangersOf(confirmation, signatures);
    }

    function test_aSignatureForAnotherRegistryIsRefused() public {
        JobsRegistry first = registry;
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        deploy(3, 2);
        bytes[] memory signatures = signed(confirmation, 2);
        registry = first;
        refusesStrangersOf(confirmation, signatures);
    }

    function testFuzz_aSignatureForOtherContentIsRefused(uint32 count, bytes32 root) public {
        vm.assume(count > 1 && root != ROOT);
        bytes[] memory signatures = signed(next(1, ROOT), 2);
        refusesStrangersOf(next(count, ROOT), signatures);
        refusesStrangersOf(next(1, root), signatures);
    }

    /// @dev Over any other digest a signature recovers to somebody else.
    function refusesStrangersOf(
        JobsRegistry.BatchConfirmation memory confirmation,
        bytes[] memory signatures
    ) private {
        bytes32 digest = registry.hashBatchConfirmation(confirmation);
        address stranger = ECDSA.recover(digest, signatures[0]);
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.NotAConfirmer.selector, stranger));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_aMalleatedSignatureIsRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(keys[0], registry.hashBatchConfirmation(confirmation));
        bytes32 other = bytes32(CURVE_ORDER - uint256(s));
        signatures[0] = abi.encodePacked(r, other, v == 27 ? uint8(28) : uint8(27));
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, other));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_aSignatureOfAnotherShapeIsRefused() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        signatures[0] = bytes.concat(signatures[0], hex"00");
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 66));
        registry.confirmBatch(confirmation, signatures);
        signatures[0] = new bytes(65);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignature.selector));
        registry.confirmBatch(confirmation, signatures);
    }

    function test_pausingStopsConfirmations() public {
        JobsRegistry.BatchConfirmation memory confirmation = next(1, ROOT);
        bytes[] memory signatures = signed(confirmation, 2);
        vm.prank(PAUSER);
        registry.pause();
        vm.expectRevert(abi.encodeWithSelector(JobsRegistry.ConfirmationsPaused.selector));
        registry.confirmBatch(confirmation, signatures);
        vm.prank(PAUSER);
        registry.unpause();
        registry.confirmBatch(confirmation, signatures);
    }
}
