// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {MountainRange} from "../src/MountainRange.sol";
import {Naive} from "./Naive.sol";
import {Test} from "./Test.sol";

contract MountainRangeTest is Test {
    using MountainRange for bytes32[64];

    bytes32[64] private peaks;
    bytes32[] private leaves;

    function grow(uint256 count) private {
        while (leaves.length < count) {
            bytes32 leaf = keccak256(abi.encode("leaf", leaves.length));
            peaks.append(uint64(leaves.length), leaf);
            leaves.push(leaf);
        }
    }

    function contains(uint64 index, bytes32 leaf, bytes32[] calldata path)
        external
        view
        returns (bool)
    {
        return peaks.contains(uint64(leaves.length), index, leaf, path);
    }

    function test_thePeaksAreThoseOfTheListAtEveryLength() public {
        for (uint256 count = 1; count <= 130; ++count) {
            grow(count);
            for (uint256 start = 0; start < count;) {
                (, uint256 size) = Naive.treeOf(count, start);
                bytes32 root = Naive.perfectRoot(leaves, start, size);
                vm.assertEq(peaks[Naive.heightOf(size)], root, "peak");
                start += size;
            }
        }
    }

    function test_everyLeafIsContainedAtEveryLength() public {
        for (uint256 count = 1; count <= 40; ++count) {
            grow(count);
            for (uint64 index = 0; index < count; ++index) {
                bytes32[] memory path = Naive.path(leaves, index);
                vm.assertTrue(this.contains(index, leaves[index], path), "contained");
            }
        }
    }

    function testFuzz_noLeafIsContainedElsewhere(uint256 count, uint256 index, uint64 elsewhere)
        public
    {
        count = bound(count, 1, 64);
        grow(count);
        index = bound(index, 0, count - 1);
        vm.assume(elsewhere != index);
        bytes32[] memory path = Naive.path(leaves, index);
        vm.assertFalse(this.contains(elsewhere, leaves[index], path), "elsewhere");
    }

    function test_thePlaceAfterTheLastHoldsNothing() public {
        for (uint64 count = 1; count <= 9; ++count) {
            grow(count);
            vm.assertFalse(this.contains(count, peaks[0], new bytes32[](0)), "nothing there");
        }
    }

    function testFuzz_noNodeIsALeaf(uint256 count, uint256 index, uint256 cut) public {
        count = bound(count, 2, 64);
        grow(count);
        index = bound(index, 0, count - 1);
        bytes32[] memory path = Naive.path(leaves, index);
        vm.assume(path.length > 0);
        cut = bound(cut, 1, path.length);
        // The node `cut` levels up, with the rest of its path: right hashes, wrong length.
        bytes32[] memory rest = new bytes32[](path.length - cut);
        for (uint256 i = 0; i < rest.length; ++i) {
            rest[i] = path[i + cut];
        }
        bytes32 node = Naive.perfectRoot(leaves, (index >> cut) << cut, 1 << cut);
        vm.assertFalse(this.contains(uint64(index >> cut), node, rest), "as an index of its level");
        vm.assertFalse(this.contains(uint64(index), node, rest), "as its leaf");
    }

    function testFuzz_anyIndexAndPathAreAnswered(
        uint64 index,
        bytes32 leaf,
        bytes32[] calldata path
    ) public {
        grow(21);
        vm.assertFalse(this.contains(index, leaf, path), "not there");
    }

    function test_theLongestRangeStillAppends() public {
        bytes32 leaf = keccak256("last");
        peaks.append(type(uint64).max - 1, leaf);
        vm.assertEq(peaks[0], leaf, "an even count");
        peaks.append(type(uint64).max >> 1, leaf);
        vm.assertTrue(peaks[63] != 0, "the highest peak");
    }
}
